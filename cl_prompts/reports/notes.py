"""Sentences that belong under a table: what its numbers leave open, and what a look at them alone would miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cl_prompts.reports.rows import Row
from cl_prompts.reports.saved_run import SavedRun
from cl_prompts.reports.statistics import FEW


def block_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Seeds that are missing or few, methods that the protocol touches in part, machines and versions that differ."""
    yield from _missing_seeds(rows)
    fewest = min(len(row.runs) for row in rows)
    if fewest == 1:
        yield "a row of one run has no spread: what another seed would give is not known"
    elif fewest < FEW:
        yield f"spreads of {fewest} runs are rough: sd of so few values is itself uncertain"
    yield from _untouched(rows)
    yield from _one_stream(rows)
    yield from _machines([run for row in rows for run in row.runs])


def row_marks(rows: Sequence[Row]) -> dict[str, str]:
    """Sentence about single rows -> its mark, a letter; declared deviations, in the order of the rows."""
    texts = dict.fromkeys(text for row in rows for text in row_sentences(row))
    return {text: letter(number) for number, text in enumerate(texts)}


def row_sentences(row: Row) -> list[str]:
    """What has to be said about one row: deviations, unknown declarations, extra data."""
    method = row.method
    texts = list(method.deviations or ())
    if method.deviations is None:
        texts.append("whether this method deviates from its paper is not recorded, and it is not installed here")
    if method.needs is not None and method.needs.extra_data:
        texts.append("uses data beside the stream and the backbone's pre-training")
    return texts


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, rest = divmod(number, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + rest)


def _missing_seeds(rows: Sequence[Row]) -> Iterator[str]:
    everywhere = sorted({seed for row in rows for seed in row.seeds})
    for row in rows:
        missing = [str(seed) for seed in everywhere if seed not in row.seeds]
        if missing:
            yield f"{row.label}: n = {len(row.runs)}, without seed {', '.join(missing)}, which other rows have"
        for name, found in row.metrics.items():
            if found.n < len(row.runs):
                yield f"{row.label}: {name} is defined in {found.n} of {len(row.runs)} runs"


def _untouched(rows: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(row.method.name for row in rows if row.method.untouched))
    if names:
        yield (
            f"{', '.join(names)}: fitted in closed form; train_mask, updates, augmentation, optimizer and memory of "
            "the protocol do not touch such a method; the same runs stand in every block that differs in these alone"
        )


def _one_stream(rows: Sequence[Row]) -> Iterator[str]:
    if any(len(row.runs) > 1 and len({run.plan_hash for run in row.runs}) == 1 for row in rows):
        yield "all runs of a row saw one stream: its spread is that of initial weights and batches, not of streams"


def _machines(runs: Sequence[SavedRun]) -> Iterator[str]:
    machines = {_machine(run) for run in runs}
    if len(machines) > 1:
        yield f"times and memory come from {len(machines)} kinds of machines: {'; '.join(sorted(machines))}"
    sources = {_source(run) for run in runs}
    if len(sources) > 1:
        yield f"the runs come from {len(sources)} states of the code: {', '.join(sorted(sources))}"


def _machine(run: SavedRun) -> str:
    hardware = run.manifest.get("hardware") or {}
    gpus = [str(gpu.get("name")) for gpu in hardware.get("gpus") or [] if isinstance(gpu, dict)]
    on_gpu = str(run.manifest.get("device", "cpu")).startswith("cuda")
    where = ", ".join(gpus) if on_gpu and gpus else hardware.get("processor", "unknown processor")
    return f"{where}, {hardware.get('threads')} threads"


def _source(run: SavedRun) -> str:
    source = run.manifest.get("source") or {}
    version = (run.manifest.get("versions") or {}).get("cl-prompts", "unknown")
    commit = str(source.get("commit") or "")[:12]
    return f"{commit or version}{' with changes' if source.get('dirty') else ''}"
