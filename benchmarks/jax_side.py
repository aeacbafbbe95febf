"""This project's contestants of ``accelerator.py``: training steps and inference, compiled.

Peak memory is what the compiled program takes, arguments and results included, which XLA settles
when it compiles: the allocator's own peak never falls, so in a process of several contestants it
says little about each. Where that peak rises while a contestant begins, it is a fact of its own.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sides import NO_TIME, Begin, Prepared, Run, reason

ARCHITECTURES = Path(__file__).parent.parent / "configs" / "architectures"
TINY = "tiny"  # a model for tests
NAMES = (
    "training, dense",
    "training, search",
    "training, folded",
    "inference, dense",
    "inference, folded",
)


def specs() -> dict[str, Any]:
    """The plain ViTs, by name."""
    from spvit_jax.models import VARIANTS, ViTSpec

    tiny = ViTSpec(width=32, depth=2, heads=2, hidden=64, patch_size=8, image_size=32, classes=10)
    plain = {n: s for n, s in VARIANTS.items() if isinstance(s, ViTSpec) and s.prefix == 1}
    return {TINY: tiny, **plain}


def architecture(name: str) -> Any:
    """The published architecture of a model; without one, a 3x3 convolution in every second block.

    Units are indices, which models of shapes need.
    """
    from spvit_jax.single_path.architecture import Architecture, from_json

    for path in sorted(ARCHITECTURES.glob("*.json")):
        choice = from_json(path.read_text())
        if choice.model == name:
            break
    else:
        spec = specs()[name]
        ops = tuple("msa" if i % 2 else "conv3x3" for i in range(spec.depth))
        choice = Architecture(ops, (spec.hidden // 2,) * spec.depth, name)
    return Architecture(choice.ops, tuple(tuple(range(n)) for n in choice.widths), name)


def prepare(name: str, batch: int, axes: tuple[str, ...], seconds: float) -> Prepared:
    """Compiles the contestants of a model, side by side; after ``seconds`` it begins no other."""
    import jax

    if name != TINY:  # compiling is timed
        jax.config.update("jax_enable_compilation_cache", False)
    end, waiting, failed = time.monotonic() + seconds, {}, {}
    with ThreadPoolExecutor() as pool:
        for contestant in NAMES:
            if time.monotonic() > end:
                failed[contestant] = NO_TIME
                continue
            work, form = contestant.split(", ")
            lower = _training if work == "training" else _inference
            try:
                lowered, arrays, call = lower(name, form, batch, axes)
                waiting[contestant] = (pool.submit(_compiled, lowered), arrays, call)
            except Exception as error:
                failed[contestant] = reason(error)
    begin: dict[str, Begin] = {}
    for contestant, (compiling, arrays, call) in waiting.items():
        if compiling.exception():
            failed[contestant] = reason(compiling.exception())
        else:
            begin[contestant] = partial(_begin, compiling, arrays, call)
    return begin, failed


def introduce() -> tuple[dict, dict[str, Any]]:
    """Names the device, the libraries and, with their sizes, the models."""
    import flax
    import jax

    first = jax.devices()[0]
    return {}, {
        "device": first.device_kind,
        "platform": first.platform,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "models": {name: dataclasses.asdict(spec) for name, spec in specs().items()},
    }


def predict(name: str, batch: int, count: int, seconds: float) -> tuple[dict, dict[str, Any]]:
    """Predicts the time of ``count`` random architectures from measured parts, and measures it.

    Args:
      name: of the dense model.
      batch: images per call.
      count: of architectures.
      seconds: given to all calls of the parts, and again of the architectures.

    Returns:
      Times as shares of the dense model's, in bfloat16.
    """
    import jax.numpy as jnp

    from spvit_jax.planning.parts import alternate, measured, model_call
    from spvit_jax.progress import Console
    from spvit_jax.single_path import latency
    from spvit_jax.single_path.architecture import describe
    from spvit_jax.single_path.ops import PAPER
    from spvit_jax.single_path.prices import cost

    spec, rng = specs()[name], np.random.default_rng(0)
    drawn = [_drawn(spec, rng) for _ in range(count)]
    table = measured(spec, PAPER, batch, seconds, jnp.bfloat16, Console(silent=True))
    priced = latency.prices(table, spec, PAPER)
    calls = [model_call(spec, draw, batch, jnp.bfloat16) for draw in (None, *drawn)]
    times = alternate(calls, seconds)
    shares = np.median(times / times[:, :1], axis=0)[1:]
    rows = [
        {
            "architecture": describe(draw, spec),
            "ffn": draw.ffn,
            "predicted": float(cost(priced, draw.gates(spec, PAPER)) / priced.dense),
            "measured": float(share),
        }
        for draw, share in zip(drawn, shares, strict=True)
    ]
    return {}, {"model": name, "batch": batch, "dense_ms": table.dense, "shares": rows}


def curve(name: str, images: int, batch: int) -> tuple[dict, dict[str, Any]]:
    """Times scoring, and choosing and repairing for each of three budgets, with random weights.

    Args:
      name: of the dense model.
      images: random ones, scored and repaired on.
      batch: images a step.

    Returns:
      Seconds, compiling included, which the first repair does for all of them.
    """
    from flax import nnx

    from spvit_jax.config import Budget
    from spvit_jax.models import ViT
    from spvit_jax.single_path.budget import budgets, select
    from spvit_jax.single_path.calibration import Calibration
    from spvit_jax.single_path.ops import PAPER
    from spvit_jax.single_path.repair import repair
    from spvit_jax.single_path.score import score
    from spvit_jax.single_path.space import Space
    from spvit_jax.training.normalise import Normalise

    spec, rng = specs()[name], np.random.default_rng(0)
    dense, size = ViT(spec, rngs=nnx.Rngs(0)), spec.image_size
    pixels = rng.integers(0, 256, (images, size, size, 3), np.uint8)
    calibration = Calibration.of(pixels, Normalise((0.5,) * 3, (0.5,) * 3), batch)
    space, start = Space(spec.blocks, PAPER, ("op", "heads", "ffn")), time.perf_counter()
    scores = score(dense, calibration, PAPER)
    rows, begin = [], time.perf_counter()
    scored = begin - start
    for share in (0.7, 0.5, 0.3):
        repair(
            dense, dense, calibration, select(space, scores, budgets(Budget(share), spec, PAPER))
        )
        rows.append({"budget": share, "seconds": time.perf_counter() - begin})
        begin = time.perf_counter()
    return {}, {"model": name, "images": images, "score_seconds": scored, "points": rows}


def _drawn(spec: Any, rng: np.random.Generator) -> Any:
    """A random architecture."""
    from spvit_jax.single_path.architecture import Architecture
    from spvit_jax.single_path.ops import PAPER

    ops = tuple(map(str, rng.choice(PAPER, len(spec.blocks))))
    heads = tuple(
        int(rng.integers(1, block.heads + 1)) if op == "msa" else 0
        for op, block in zip(ops, spec.blocks, strict=True)
    )
    ffn = tuple(block.hidden * int(rng.integers(1, 9)) // 8 for block in spec.blocks)
    return Architecture(ops, ffn, heads=heads)


def _compiled(lowered: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    return lowered.compile(), time.perf_counter() - begin


def _begin(
    compiling: Future, arrays: Callable[[], list], call: Callable[..., list]
) -> tuple[Run, dict[str, Any]]:
    """Puts the arrays on the device; ``call(program, arrays)`` is a step, from arrays to arrays."""
    import jax

    program, seconds = compiling.result()
    device = jax.devices()[0]
    before = device.memory_stats() or {}
    held = jax.block_until_ready(jax.device_put(arrays(), device))

    def run(count: int) -> None:
        nonlocal held
        for _ in range(count):
            held, result = call(program, held)
        jax.block_until_ready((held, result))

    facts = {"compile_seconds": seconds, **_planned(program)}
    if before:
        run(1)
        after = device.memory_stats()["peak_bytes_in_use"]
        if after > before["peak_bytes_in_use"]:
            facts["allocator_peak_mb"] = (after - before["bytes_in_use"]) / 2**20
    return run, facts


def _planned(program: Any) -> dict[str, float]:
    """MB of a compiled program with its arguments and results, donated ones counted once."""
    plan = program.memory_analysis()
    if plan is None:
        return {}
    kept = plan.output_size_in_bytes - plan.alias_size_in_bytes
    total = plan.argument_size_in_bytes + kept + plan.temp_size_in_bytes
    return {"peak_memory_mb": total / 2**20}


def _model(name: str, form: str, axes: tuple[str, ...], batch_norm: bool) -> Any:
    """A model of shapes, which computes in bfloat16."""
    import jax.numpy as jnp
    from flax import nnx

    from spvit_jax.models import ViT
    from spvit_jax.single_path.prune import fold, prune
    from spvit_jax.single_path.supernet import supernet

    def make() -> Any:
        model = ViT(specs()[name], dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        if form == "search":
            return supernet(model)
        if form == "folded":
            return fold(prune(model, architecture(name)), batch_norm=batch_norm)
        return model

    return nnx.eval_shape(make)


def _training(name: str, form: str, batch: int, axes: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """A whole step: normalising uint8 images, forward, backward and AdamW on float32 weights."""
    import jax
    from flax import nnx

    from spvit_jax.config import Training
    from spvit_jax.training.losses import classification
    from spvit_jax.training.normalise import Normalise
    from spvit_jax.training.optim import optimizer
    from spvit_jax.training.prepare import prepare_images
    from spvit_jax.training.sharding import make_mesh
    from spvit_jax.training.step import Step

    spec, model = specs()[name], _model(name, form, axes, batch_norm=False)
    gating = _gating(spec, axes) if form == "search" else None
    adamw = optimizer(Training(), lambda step: 1e-4, 1e-3)
    graph, *others = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = others
    normalise = Normalise((0.5,) * 3, (0.5,) * 3)
    prepare = partial(prepare_images, normalise=normalise, classes=spec.classes)
    step = Step(classification, adamw, prepare, gating)

    def initial(params: Any, stats: Any) -> Any:
        return step.initial(nnx.merge(graph, params, stats), 0)

    state = jax.eval_shape(initial, params, stats)
    image = jax.ShapeDtypeStruct((batch, spec.image_size, spec.image_size, 3), np.uint8)
    data = {"image": image, "label": jax.ShapeDtypeStruct((batch,), np.int32)}
    program = step.program(graph, make_mesh(devices=jax.devices()[:1]), state)

    def arrays() -> list:
        rng = np.random.default_rng(0)
        first = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
        first.params, first.gates = _random(state.params), gating.initial() if gating else ()
        first.stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), state.stats)
        labels = rng.integers(0, spec.classes, batch).astype(np.int32)
        return [first, {"image": rng.integers(0, 256, image.shape, np.uint8), "label": labels}]

    def call(program: Any, arrays: list) -> tuple[list, Any]:
        state, metrics = program(None, *arrays)
        return [state, arrays[1]], metrics

    return program.lower(None, state, data), arrays, call


def _gating(spec: Any, axes: tuple[str, ...]) -> Any:
    """A search for half of the dense model's MACs."""
    from spvit_jax.single_path.budget import Budget
    from spvit_jax.single_path.gating import Gating
    from spvit_jax.single_path.prices import macs
    from spvit_jax.single_path.space import Space

    space = Space(spec.blocks, axes=axes)
    prices = macs(spec, space.ops)
    return Gating(space, (Budget(prices, prices.dense // 2),), 20.0, 1e-3)


def _inference(name: str, form: str, batch: int, axes: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """Logits of normalised images, weights in bfloat16 and batch norms folded."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    side = specs()[name].image_size
    graph, state = nnx.split(_model(name, form, axes, batch_norm=True))
    narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), state)
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.bfloat16)
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))

    def arrays() -> list:
        return [_random(narrow), _random(images, 1.0)]

    def call(program: Any, arrays: list) -> tuple[list, Any]:
        return arrays, program(*arrays)

    return forward.lower(narrow, images), arrays, call


def _random(tree: Any, scale: float = 0.02) -> Any:
    """Random matrices, and vectors of ones: every norm's scale is one."""
    import jax

    rng = np.random.default_rng(0)

    def leaf(shape: Any) -> np.ndarray:
        if len(shape.shape) < 2:
            return np.ones(shape.shape, shape.dtype)
        return (scale * rng.standard_normal(shape.shape, np.float32)).astype(shape.dtype)

    return jax.tree.map(leaf, tree)
