"""A search step against a dense training step of the same model, and against PyTorch's.

    python benchmarks/training.py [--model deit_tiny_patch16_224] [--batch 8] [--turns 15]
        [--axes op,ffn]

Every step is forward, backward and AdamW on random images, in float32; ``--axes`` are those that
the search puts under gates. "× first" is the speed relative to the dense step, turn by turn. The
compilation cache is off. Needs torch.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from alternate import Make, compare, show


def ours(model_name: str, batch: int, axes: tuple[str, ...]) -> tuple[Callable[[], None], dict]:
    """The project's own jitted step: a search's where there are axes."""
    import jax
    from flax import nnx

    jax.config.update("jax_enable_compilation_cache", False)

    from spvit_jax.config import Training
    from spvit_jax.models import VARIANTS, ViT
    from spvit_jax.single_path.budget import Budget
    from spvit_jax.single_path.gating import Gating
    from spvit_jax.single_path.prices import macs
    from spvit_jax.single_path.space import Space
    from spvit_jax.single_path.supernet import supernet
    from spvit_jax.training.losses import classification
    from spvit_jax.training.normalise import Normalise
    from spvit_jax.training.optim import optimizer
    from spvit_jax.training.prepare import prepare_images
    from spvit_jax.training.sharding import make_mesh
    from spvit_jax.training.step import Step

    spec: Any = VARIANTS[model_name]
    model = ViT(spec, rngs=nnx.Rngs(0))
    normalise, gating = Normalise((0.5,) * 3, (0.5,) * 3), None
    if axes:
        space = Space(spec.blocks, axes=axes)
        prices = macs(spec, space.ops)
        gating = Gating(space, (Budget(prices, prices.dense // 2),), 20.0, 1e-3)
        model = supernet(model)
    adamw = optimizer(Training(), lambda step: 1e-4, 1e-3)
    prepare = partial(prepare_images, normalise=normalise, classes=spec.classes)
    step = Step(classification, adamw, prepare, gating)
    state = step.initial(model, 0)
    key = jax.random.key(0)
    size = (batch, spec.image_size, spec.image_size, 3)
    images = jax.random.randint(key, size, 0, 256).astype("uint8")
    data = {"image": images, "label": jax.random.randint(key, (batch,), 0, spec.classes)}
    begin = time.perf_counter()
    lowered = step.program(nnx.graphdef(model), make_mesh(), state).lower(None, state, data)
    traced = time.perf_counter()
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    facts = {
        "trace_seconds": traced - begin,
        "compile_seconds": time.perf_counter() - traced,
        "temporaries_mb": memory.temp_size_in_bytes / 2**20,
    }

    def run() -> None:
        nonlocal state
        state, metrics = compiled(None, state, data)
        jax.block_until_ready((state, metrics))

    return run, facts


def pytorch(model_name: str, batch: int) -> tuple[Callable[[], None], dict]:
    """The same dense step in eager PyTorch."""
    import torch
    from torch_vit import ViT

    from spvit_jax.models import VARIANTS

    spec: Any = VARIANTS[model_name]
    model = ViT(spec.width, spec.depth, spec.heads, spec.hidden)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    images, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)

    def run() -> None:
        adamw.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        adamw.step()

    return run, {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--axes", default="op,ffn")
    options = parser.parse_args()
    arguments = options.model, options.batch
    contestants: dict[str, tuple[Make, tuple]] = {
        "dense": (ours, (*arguments, ())),
        "search": (ours, (*arguments, tuple(options.axes.split(",")))),
        "dense, PyTorch": (pytorch, arguments),
    }
    title = f"training step, {options.model}, batch {options.batch}"
    show(title, compare(contestants, options.turns, options.batch))
