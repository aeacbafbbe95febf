"""Torch-Pruning for ``rivals.py``: prunes timm's ViT, trains it by the given recipe, tests it.

    python benchmarks/torch_pruning_side.py JOB.json

The job names a dense model's weights, images, a budget and a recipe, and where the result goes.
One pruning ratio holds for everything that may be pruned: the largest model within the budget is
looked for. Needs torch, timm and torch-pruning.
"""

import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy, log_softmax

Job = dict[str, Any]
Tensor = torch.Tensor

SCORED = 2048  # training images, the first, whose gradients tell what matters
SCORED_BATCH = 64
STRIDE = 0.02  # of the ratios tried before bisection
HALVINGS = 10  # of that: ratios differ by 2e-5, less than a unit of all those of the model
SANE = 0.5  # top-1 of a dense model that was read well
TEST_BATCH = 500
NO_DECAY = ("pos_embed", "cls_token")  # besides everything with one axis: norms and biases


def dense_model(job: Job) -> VisionTransformer:
    """Builds timm's ViT and loads its weights, every one of them."""
    spec = job["spec"]
    model = VisionTransformer(
        img_size=spec["image_size"],
        patch_size=spec["patch_size"],
        num_classes=spec["classes"],
        embed_dim=spec["width"],
        depth=spec["depth"],
        num_heads=spec["heads"],
        mlp_ratio=spec["hidden"] / spec["width"],
    )
    model.load_state_dict(load_file(job["weights"]), strict=True)
    return model.eval()


def split(job: Job, name: str) -> tuple[Tensor, Tensor]:
    """Normalised images ``[n, 3, height, width]``, and labels."""
    with np.load(job["data"]) as arrays:
        pixels = torch.from_numpy(arrays[f"{name}_images"]).float() / 255
        labels = torch.from_numpy(arrays[f"{name}_labels"].astype(np.int64))
    mean, std = (torch.tensor(job[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (pixels.permute(0, 3, 1, 2) - mean) / std, labels


def macs(model: VisionTransformer, published: bool) -> int:
    """Counts multiply-accumulates per image, from the shapes of the layers.

    Args:
      model: dense or pruned.
      published: by the paper's formula, with norms and without the class token's share of FFNs;
        else of what is read: the last block computes the class token alone.
    """
    embedding = model.patch_embed.proj
    patches = model.patch_embed.num_patches
    tokens = patches + 1
    total = patches * embedding.weight.numel() + model.head.weight.numel()
    for block in model.blocks:
        qkv, proj = block.attn.qkv, block.attn.proj
        width, values = qkv.in_features, proj.in_features
        read = 1 if block is model.blocks[-1] and not published else tokens
        total += tokens * width * (qkv.out_features - values) + read * width * values
        total += read * proj.weight.numel() + 2 * read * tokens * values
        ffn = block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel()
        total += patches * ffn + 2 * width * tokens if published else read * ffn
    return total


def accumulate(model: VisionTransformer, images: Tensor, labels: Tensor) -> None:
    """Leaves in ``model`` the summed gradients of the cross-entropy of ``SCORED`` images."""
    model.zero_grad()
    chunks = (x[:SCORED].split(SCORED_BATCH) for x in (images, labels))
    for pixels, classes in zip(*chunks, strict=True):
        cross_entropy(model(pixels), classes).backward()


def pruned(dense: VisionTransformer, job: Job, ratio: float) -> VisionTransformer:
    """Takes ``ratio`` of everything in scope out of a copy, by the gradients that ``dense`` has."""
    model = copy.deepcopy(dense)
    for own, other in zip(model.parameters(), dense.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    ignored = [model.head]
    if job["scope"] == "heads":
        ignored += [model.patch_embed.proj]
        ignored += [layer for block in model.blocks for layer in (block.attn.proj, block.mlp.fc2)]
    importance = {
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
    }[job["importance"]]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.zeros(1, 3, job["spec"]["image_size"], job["spec"]["image_size"]),
        importance=importance(),
        pruning_ratio=ratio,
        global_pruning=job["grouping"] == "isomorphic",
        isomorphic=job["grouping"] == "isomorphic",
        ignored_layers=ignored,
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        unwrapped_parameters=[(model.pos_embed, 2), (model.cls_token, 2)],  # the axis of the width
    )
    pruner.step()
    for block in model.blocks:
        attention = block.attn
        attention.attn_dim = attention.proj.in_features
        attention.head_dim = attention.attn_dim // attention.num_heads
    model.zero_grad()
    return model


def fit(dense: VisionTransformer, job: Job) -> VisionTransformer:
    """Finds the largest pruned model within the budget.

    A layer of which everything should go stays whole in this library, so costs may rise again at
    high ratios: the first ratio that fits is bisected.

    Raises:
      SystemExit: no ratio fits.
    """
    limit, published = job["budget"] * macs(dense, published=True), job["count"] == "published"
    high, best = 0.0, dense
    while macs(best, published) > limit:
        high += STRIDE
        if high >= 1:
            raise SystemExit(f"no pruning ratio leaves {job['budget']:.1%} of the MACs")
        best = pruned(dense, job, high)
    low = max(high - STRIDE, 0.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        model = pruned(dense, job, middle)
        if macs(model, published) > limit:
            low = middle
        else:
            high, best = middle, model
    return best


def stream(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """The tokens that leave each block and that somebody reads: of the last, the class token."""
    x, tokens = model._pos_embed(model.patch_embed(images)), []
    for block in model.blocks:
        x = block(x)
        tokens.append(x)
    return [*tokens[:-1], x[:, :1]]


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error of tokens ``[b, n, width]`` over the teacher's mean variance."""
    variance = teacher.var((0, 1), correction=0).mean()
    return (student - teacher).square().mean() / variance


def soft_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` at temperature T, the mean over images."""
    expected, actual = (log_softmax(x / temperature, -1) for x in (teacher, student))
    return temperature**2 * (expected.exp() * (expected - actual)).sum(-1).mean()


def loss(
    model: VisionTransformer, dense: VisionTransformer, images: Tensor, labels: Tensor, recipe: Job
) -> Tensor:
    """The recipe's distance to the dense model; with "soft", labels have the rest."""
    if recipe["distillation"] == "features":
        with torch.no_grad():
            taught = stream(dense, images)
        pairs = zip(stream(model, images), taught, strict=True)
        return torch.stack([relative_error(mine, theirs) for mine, theirs in pairs]).mean()
    with torch.no_grad():
        taught = dense(images)
    logits = model(images)
    distance = soft_distance(logits, taught, recipe["temperature"])
    labelled = cross_entropy(logits, labels, label_smoothing=recipe["label_smoothing"])
    return recipe["weight"] * distance + (1 - recipe["weight"]) * labelled


def batches(images: int, size: int) -> Iterator[Tensor]:
    """Draws indices without replacement, epoch after epoch, without each one's partial batch."""
    while True:
        order = torch.randperm(images)
        yield from order[: images // size * size].split(size)


def train(
    model: VisionTransformer, dense: VisionTransformer, images: Tensor, labels: Tensor, recipe: Job
) -> None:
    """Trains ``model`` by AdamW and a cosine over all steps, on images flipped at random."""
    steps = round(recipe["epochs"] * (len(images) // recipe["batch_size"]))
    first, last = recipe["learning_rate"], recipe["final_learning_rate"]
    groups: dict[float, list[Tensor]] = {recipe["weight_decay"]: [], 0.0: []}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in NO_DECAY
        groups[recipe["weight_decay"] if decays else 0.0].append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for decay, group in groups.items()], lr=first
    )
    drawn, begin = batches(len(images), recipe["batch_size"]), time.monotonic()
    for step in range(steps):
        for group in adamw.param_groups:
            group["lr"] = last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
        rows = next(drawn)
        flips = torch.rand(len(rows), 1, 1, 1) < 0.5
        seen = torch.where(flips, images[rows].flip(-1), images[rows])
        value = loss(model, dense, seen, labels[rows], recipe)
        adamw.zero_grad()
        value.backward()
        adamw.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - begin
            print(f"step {step + 1} of {steps}, loss {value.item():.4f}, {seconds:.0f} s")


def top1(model: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """The share of images whose highest logit is the label's."""
    with torch.inference_mode():
        predictions = torch.cat([model(chunk).argmax(-1) for chunk in images.split(TEST_BATCH)])
    return (predictions == labels).float().mean().item()


def run(job: Job) -> dict[str, Any]:
    """Prunes, trains and tests.

    Raises:
      SystemExit: the dense model or the job makes no sense, or the budget cannot be met.
    """
    begin, recipe = time.monotonic(), job["recipe"]
    torch.manual_seed(job["seed"])
    if recipe["epochs"] and recipe["distillation"] == "features" and job["scope"] == "all":
        raise SystemExit("features cannot be compared where the width is pruned")
    dense, (images, labels), test = dense_model(job), split(job, "train"), split(job, "test")
    before = top1(dense, *test)
    if before < SANE:
        raise SystemExit(f"the dense model's top-1 is {before:.2%}: other weights or images?")
    accumulate(dense, images, labels)
    model = fit(dense, job)
    counted = macs(model, published=True)
    print(f"dense top-1 {before:.2%}; pruned to {counted / macs(dense, published=True):.2%} MACs")
    train(model, dense, images, labels, recipe)
    layers = [(b.attn.qkv, b.attn.proj, b.mlp.fc1) for b in model.blocks]
    return {
        "top1": top1(model, *test),
        "images": len(test[0]),
        "macs": counted,
        "macs_run": macs(model, published=False),
        "parameters": sum(p.numel() for p in model.parameters()),
        "shapes": [
            [qkv.out_features, proj.in_features, proj.out_features, fc1.out_features]
            for qkv, proj, fc1 in layers
        ],
        "seconds": time.monotonic() - begin,
    }


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(job["output"]).write_text(json.dumps(run(job), indent=1))
