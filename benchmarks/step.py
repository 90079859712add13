"""MVP's training step and anytime evaluation beside the bare timm passes that the mathematics needs, in one run.

    python benchmarks/step.py                      # both backbones, batch 32
    python benchmarks/step.py --rounds 20 --backbones vit_nano

Every round times each piece once, in an order drawn anew, so that a busy machine slows all of them alike; the table
gives the median of each and the ratio of medians. The bare passes are timm's own blocks on the same images, with
MVP's prompts joined to the tokens and cut off again by hand, all tokens computed in every block:

    query            un-prompted forward, no gradient
    forward          prompted forward, no gradient
    forward+backward prompted forward and backward to the prompts
    step   / bare = one update by the strategy / (query + forward+backward)
    evaluation / bare = one evaluation of the images / forward, and beside it / query (no prompts at all)
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from timm.models import VisionTransformer
from torch import Tensor

from cl_prompts.backbones import FrozenViT
from cl_prompts.evaluation import Evaluator
from cl_prompts.strategies import MVP
from cl_prompts.strategies.mvp import MVPMethod
from scenarios import si_blurry_benchmark
from scenarios.transforms import EvalTransform, TrainTransform

BACKBONES: dict[str, Callable[[], VisionTransformer]] = {
    "vit_tiny_patch16_224": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0),
    "vit_nano": lambda: VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, num_classes=0
    ),
}
HALF = (0.5, 0.5, 0.5)


class Noise:
    """Labelled noise images: what is in them changes no time."""

    def __init__(self, count: int, size: int, classes: int) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        self.targets = np.arange(count) % classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        return self.images[index], int(self.targets[index]), index


def bare_prompted(model: VisionTransformer, images: Tensor, method: MVPMethod, choice: Tensor) -> Tensor:
    """The prompted forward pass as the published code makes it: timm's blocks, prompt tokens joined and cut."""
    settings = method.settings
    experts = method.expert_prompts[choice]
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    length = tokens.shape[1]
    for index, block in enumerate(model.blocks):
        joined = [tokens]
        for rows, layers, size in (
            (method.general_prompt.expand(len(images), -1, -1), settings.general_layers, settings.general_length),
            (experts, settings.expert_layers, settings.expert_length),
        ):
            if index in layers:
                place = layers.index(index)
                joined.append(rows[:, place * size : (place + 1) * size])
        tokens = block(torch.cat(joined, 1) if len(joined) > 1 else tokens)[:, :length]
    return model.forward_head(model.norm(tokens), pre_logits=True)


def pieces(name: str, batch: int, classes: int) -> tuple[dict[str, Callable[[], None]], int]:
    """What is timed, each as a function without arguments, and the side of the images in pixels."""
    torch.manual_seed(0)
    model = BACKBONES[name]()
    size = model.patch_embed.img_size[0]
    data = Noise(batch, size, classes)
    benchmark = si_blurry_benchmark(data, data, num_classes=classes, n_sessions=1, view="merged")
    transform = EvalTransform(size, HALF, HALF)
    strategy = MVP(
        backbone=FrozenViT(model),
        num_classes=classes,
        train_mb_size=batch,
        updates_per_batch=1,
        train_transform=TrainTransform(size, HALF, HALF, augmentation="crop", seed=0),
        eval_transform=transform,
    )
    method = strategy.model
    assert isinstance(method, MVPMethod)
    experience = benchmark.train_stream[0]
    strategy.train(experience)
    evaluator = Evaluator(benchmark.test_stream[0].dataset, num_classes=classes, transform=transform, batch_size=batch)
    evaluator(method, strategy.exposed)  # the queries of the test images, once per run
    images = transform(torch.from_numpy(data.images).permute(0, 3, 1, 2))
    raw = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(data.targets)
    choice = torch.arange(batch) % method.settings.pool_size

    def step() -> None:
        strategy.is_training = True
        method.train()
        strategy.mbatch = [raw, targets]
        strategy.mb_sample_ids = torch.arange(batch)
        strategy.stream_size, strategy._pass_number = batch, 0
        strategy._update()

    def loop() -> None:
        strategy.train(experience)

    @torch.no_grad()
    def query() -> None:
        model.forward_head(model.forward_features(images), pre_logits=True)

    @torch.no_grad()
    def forward() -> None:
        bare_prompted(model, images, method, choice)

    def forward_backward() -> None:
        torch.autograd.grad(
            bare_prompted(model, images, method, choice).sum(), [method.general_prompt, method.expert_prompts]
        )

    def evaluation() -> None:
        evaluator(method, strategy.exposed)

    timed = {
        "query": query,
        "forward": forward,
        "forward+backward": forward_backward,
        "step": step,
        "loop": loop,
        "evaluation": evaluation,
    }
    return timed, size


def measure(timed: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each piece over interleaved rounds, after two that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    order = list(timed)
    shuffle = random.Random(0)
    for number in range(rounds + 2):
        shuffle.shuffle(order)
        for name in order:
            started = time.perf_counter()
            timed[name]()
            if number >= 2:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and print one table a backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--classes", type=int, default=100)
    arguments = parser.parse_args()
    console = Console()
    for name in arguments.backbones:
        timed, size = pieces(name, arguments.batch, arguments.classes)
        medians = measure(timed, arguments.rounds)
        needed = {
            "step": {"query + forward+backward": medians["query"] + medians["forward+backward"]},
            "loop": {"step": medians["step"]},
            "evaluation": {"forward": medians["forward"], "query": medians["query"]},
        }
        table = Table(
            title=f"{name}, {size} px, batch {arguments.batch}, {torch.get_num_threads()} threads, "
            f"median of {arguments.rounds} interleaved rounds"
        )
        table.add_column("piece")
        table.add_column("ms", justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("to")
        for piece, value in medians.items():
            ratios = needed.get(piece, {})
            table.add_row(
                piece,
                f"{1000 * value:.1f}",
                ", ".join(f"{value / base:.3f}" for base in ratios.values()),
                ", ".join(ratios) or "bare timm",
            )
        console.print(table)


if __name__ == "__main__":
    main()
