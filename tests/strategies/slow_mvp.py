"""MVP once more, slowly: one image at a time, one Python sum for each sum of the formulas, autograd for head gradients.

Written from the method's definition, without the project's losses, masks, prompts or backbone wrapper.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def embed(vit: Any, image: Tensor) -> Tensor:
    patches = vit.patch_embed(image[None])[0]
    return torch.cat([vit.cls_token[0], patches]) + vit.pos_embed[0]


def block_with_tokens(vit: Any, index: int, rows: Tensor, prompts: list[Tensor]) -> Tensor:
    return vit.blocks[index](torch.cat([rows, *prompts])[None])[0][: len(rows)]


def block_with_prefixes(vit: Any, index: int, rows: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    block = vit.blocks[index]
    attention = block.attn
    width = rows.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    normed = block.norm1(rows)
    query = normed @ weight[:width].T + bias[:width]
    key = torch.cat([normed, *keys]) @ weight[width : 2 * width].T + bias[width : 2 * width]
    value = torch.cat([normed, *values]) @ weight[2 * width :].T + bias[2 * width :]
    size = width // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        heads.append(torch.softmax(query[:, part] @ key[:, part].T / size**0.5, dim=-1) @ value[:, part])
    rows = rows + attention.proj(torch.cat(heads, dim=-1))
    return rows + block.mlp(block.norm2(rows))


def cosine_distance(left: Tensor, right: Tensor) -> Tensor:
    return 1 - (left * right).sum() / ((left * left).sum().sqrt() * (right * right).sum().sqrt())


def slow_step(
    vit: Any,
    settings: Any,
    parameters: dict[str, Tensor],
    images: Tensor,
    targets: list[int],
    usage: list[float],
    allowed: list[int],
) -> tuple[Tensor, Tensor, list[float]]:
    """One training step of MVP: (classification loss, prompt loss, usage afterwards).

    `settings` needs the fields of `MVPSettings` with no switch left open; `parameters` the method's trainable tensors.
    """
    batch, pool = len(targets), settings.pool_size
    counted = settings.contrast != "none"
    mu = [count + 1 if counted else 1.0 for count in usage]
    keys = parameters["keys"]

    # Selection: distance to every key, weighted by usage unless routing is plain.
    chosen, distances = [], []
    for image in images:
        with torch.no_grad():
            rows = embed(vit, image)
            for index in range(settings.query_blocks):
                rows = vit.blocks[index](rows[None])[0]
            query = vit.norm(rows)[0] if settings.query_norm else rows[0]
        row = [cosine_distance(query, key) for key in keys]
        weighted = [float(d.detach()) * (mu[p] if settings.route == "count" else 1) for p, d in enumerate(row)]
        best = min(range(pool), key=weighted.__getitem__)
        chosen.append(best)
        distances.append(row[best])

    # Prompt loss.
    if settings.contrast == "none":
        prompt_loss = sum(distances) / batch
    elif settings.contrast == "released":
        repel = attract = 0.0
        for i in range(batch):
            for j in range(batch):
                attract = attract + torch.exp(distances[j] / mu[chosen[i]]) / batch**2
                for p in range(pool):
                    between = cosine_distance(keys[chosen[i]], keys[p]) if p != chosen[i] else 0 * distances[i]
                    repel = repel + torch.exp(between / mu[chosen[j]]) / (batch**2 * pool)
        prompt_loss = -torch.log(repel / (attract + repel) + 1e-6)
    else:
        prompt_loss = 0.0
        for i, mine in enumerate(chosen):
            others = [p for p in range(pool) if p != mine]
            repel = sum(torch.exp(cosine_distance(keys[mine], keys[p].detach()) / mu[mine]) for p in others)
            repel = repel / len(others)
            attract = torch.exp(distances[i] / mu[mine])
            prompt_loss = prompt_loss - torch.log(repel / (attract + repel)) / batch
    usage_after = list(usage)
    for mine in chosen:
        usage_after[mine] += 1

    # Prompted features.
    general, experts = parameters["general_prompt"][0], parameters["expert_prompts"]
    features = []
    for image, mine in zip(images, chosen, strict=True):
        rows = embed(vit, image)
        for index in range(len(vit.blocks)):
            pieces = []
            for tensor, layers, length in (
                (general, settings.general_layers, settings.general_length),
                (experts[mine], settings.expert_layers, settings.expert_length),
            ):
                if index not in layers:
                    continue
                place = layers.index(index)
                if settings.insertion == "prompt_tuning":
                    pieces.append(tensor[place * length : (place + 1) * length])
                else:
                    start = 2 * place * length
                    pieces.append((tensor[start : start + length], tensor[start + length : start + 2 * length]))
            if settings.insertion == "prompt_tuning":
                rows = block_with_tokens(vit, index, rows, pieces)
            else:
                rows = block_with_prefixes(vit, index, rows, [k for k, _ in pieces], [v for _, v in pieces])
        features.append(vit.norm(rows)[0])

    # Head, soft mask, class mask.
    weight, bias = parameters["head.weight"], parameters["head.bias"]
    masks = [2 / (1 + torch.exp(-parameters["soft_masks"][mine])) for mine in chosen]
    ones = torch.ones_like(bias)

    def cross_entropy(feature: Tensor, i: int, head_weight: Tensor, head_bias: Tensor, mask: Tensor) -> Tensor:
        logits = (mask if settings.logit_mask else ones) * (head_weight @ feature + head_bias)
        return torch.log(torch.exp(logits[allowed]).sum()) - logits[targets[i]]

    # Gradient dissimilarity, by backward passes through the head alone.
    fixed_bias = bias.detach()
    own_gradients = []
    for i in range(batch):
        free = weight.detach().clone().requires_grad_()
        loss = cross_entropy(features[i].detach(), i, free, fixed_bias, masks[i].detach())
        own_gradients.append(torch.autograd.grad(loss, free)[0])
    mean_gradient = sum(own_gradients) / batch
    ign = []
    for i in range(batch):
        own, mean = own_gradients[i][targets[i]], mean_gradient[targets[i]]
        norms = own.norm() * mean.norm()
        ign.append(float((1 - (own @ mean) / norms).clamp(0, 2)) if norms > 0 else 1.0)

    # Feature scaling and focal cross-entropy.
    terms = []
    for i, feature in enumerate(features):
        divisor = 1.0
        if settings.feature_scaling:
            divisor = float(cosine_distance(weight[targets[i]].detach(), feature.detach())) + settings.margin
        terms.append(cross_entropy(feature / divisor, i, weight, bias, masks[i]))
    alpha, gamma = settings.alpha, settings.gamma
    if settings.focal == "sample":
        weights = [(1 - alpha) + alpha * value**gamma for value in ign]
    elif settings.focal == "batch":
        weights = [(1 - alpha) + alpha * sum(value**gamma for value in ign) / batch] * batch
    else:
        weights = [1.0] * batch
    classification = sum(factor * term for factor, term in zip(weights, terms, strict=True)) / batch
    return classification, prompt_loss, usage_after
