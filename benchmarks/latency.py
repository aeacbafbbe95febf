"""Predicted against measured time of random pruned models, by a table of times made here.

    python benchmarks/latency.py [--models deit_small_patch16_224,swin_tiny_patch4_window7_224]
        [--batch 1] [--architectures 8] [--seconds 60] [--dtype float32] [--json FILE]

For every model: the table of ``python -m spvit_jax.prices``, over the paper's operations;
architectures of random operations, heads, features of heads and FFN widths that it says take 0.4 to
0.8 of the dense model's time, of a ViT every second one with a random schedule of merged tokens;
each pruned and folded, with random weights, and timed in turns with the dense model.
What is compared is the share of the dense model's time: its median over the turns.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from spvit_jax.models import VARIANTS
from spvit_jax.planning.parts import alternate, measured, model_call
from spvit_jax.progress import Console
from spvit_jax.single_path.architecture import Architecture, describe
from spvit_jax.single_path.axes import TokensAxis
from spvit_jax.single_path.latency import Table, prices
from spvit_jax.single_path.merging import Merges, merged
from spvit_jax.single_path.narrow import PARTS, dims_of
from spvit_jax.single_path.ops import OPS, PAPER
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.schedules import SHAPES, schedule

SHARES = 0.4, 0.8


def can_merge(spec: Any) -> bool:
    """Whether a model has blocks that can merge tokens."""
    return not all(TokensAxis().refuses(block) for block in spec.blocks)


def architecture(spec: Any, table: Table, share: float, seed: int, merging: bool) -> Architecture:
    """Draws operations and heads, and FFN widths with which they should take about ``share``.

    If ``merging``, tokens are merged by a random schedule, and no map is read behind the first.
    """
    rng, blocks = np.random.default_rng(seed), spec.blocks
    while True:
        likely, least = rng.dirichlet(np.ones(len(PAPER))), rng.uniform()
        ops = tuple(rng.choice(PAPER, p=likely).item() for _ in blocks)
        merges: Merges = ()
        if merging:
            shape, total = str(rng.choice(list(SHAPES))), rng.uniform(0.2, 0.9) * blocks[0].patches
            merges = schedule(spec, shape, int(total))
            fit = [OPS[op].fits(b) for op, b in zip(ops, merged(spec, merges), strict=True)]
            ops = tuple(op if fits else "conv1x1" for op, fits in zip(ops, fit, strict=True))
        drawn = [math.ceil(rng.uniform(least, 1) * block.heads) for block in blocks]
        heads = tuple(n if op == "msa" else 0 for n, op in zip(drawn, ops, strict=True))
        narrowest = rng.uniform(2 / PARTS, 1)  # three eighths of a head or more
        places = np.ceil(PARTS * rng.uniform(narrowest, 1, (len(blocks), 2))).astype(int) - 1
        features = [
            dims_of(b, (keys, values))
            for b, (keys, values) in zip(blocks, places.tolist(), strict=True)
        ]
        dims = tuple(n if op == "msa" else () for n, op in zip(features, ops, strict=True))
        kept: dict[str, Any] = {"heads": heads, "dims": dims, "merges": merges}
        none, every = (
            predicted(spec, table, Architecture(ops, widths, **kept))
            for widths in ((0,) * len(blocks), tuple(block.hidden for block in blocks))
        )
        mean = (share - none) / (every - none)
        if 0.2 < mean < 0.95:
            shares = mean + min(mean, 1 - mean) * rng.uniform(-1, 1, len(blocks))
            widths = tuple(int(n * b.hidden) for n, b in zip(shares, blocks, strict=True))
            return Architecture(ops, widths, **kept)


def predicted(spec: Any, table: Table, choice: Architecture) -> float:
    """The share of the dense model's time that a table gives an architecture."""
    timed = prices(table, spec, PAPER, choice.merges, choice.dims)
    return float(cost(timed, choice.gates(spec, PAPER))) / table.dense


def compare(
    name: str, spec: Any, count: int, batch: int, seconds: float, dtype: Any, console: Console
) -> dict[str, Any]:
    """Measures a table, predicts ``count`` models by it, measures and prints them.

    ``seconds`` are those of the table, and again those of the models.
    """
    merging = can_merge(spec)
    axes = ("op", "heads", "dims", *(["tokens"] if merging else []), "ffn")
    table = measured(spec, PAPER, batch, seconds, dtype, console, axes)
    chosen = [
        architecture(spec, table, float(share), seed, merging and seed % 2 == 1)
        for seed, share in enumerate(np.linspace(*SHARES, count))
    ]
    calls = [model_call(spec, choice, batch, dtype) for choice in (None, *chosen)]
    times = 1e3 * alternate(calls, seconds)
    ratios = np.quantile(times / times[:, :1], [0.25, 0.5, 0.75], axis=0)[:, 1:]
    dense = float(np.median(times[:, 0]))
    print(f"\n{name}, batch {batch}, {table.about['device']}: dense {dense:.2f} ms,", end=" ")
    print(f"{len(times)} turns (table: {table.dense:.2f} ms, {table.about['turns']} turns)")
    print(f"{'predicted':>10}{'measured':>10}{'quartiles':>14}{'error':>8}  blocks")
    rows = []
    for choice, (low, middle, high) in zip(chosen, ratios.T, strict=True):
        share = predicted(spec, table, choice)
        error = share / middle - 1
        print(f"{share:10.3f}{middle:10.3f}{f'{low:.3f}–{high:.3f}':>14}{error:+8.1%}", end="  ")
        print(describe(choice, spec), *choice.widths)
        rows.append({"predicted": share, "measured": float(middle), "error": float(error)})
    errors = np.abs([row["error"] for row in rows])
    print(f"mean error {errors.mean():.1%}, largest {errors.max():.1%}", flush=True)
    return {
        "dense_ms": dense,
        "mean_error": float(errors.mean()),
        "largest_error": float(errors.max()),
        "models": rows,
        **table.about,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="deit_small_patch16_224,swin_tiny_patch4_window7_224")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--architectures", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dtype = None if options.dtype == "float32" else jnp.dtype(options.dtype)
    console, results = Console(), {}
    for name in options.models.split(","):
        arguments = (options.architectures, options.batch, options.seconds, dtype, console)
        results[name] = compare(name, VARIANTS[name], *arguments)
    print(json.dumps(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
