"""A folded pruned model against its dense one, and both against what computes every token.

    python benchmarks/inference.py [--architecture FILE.json] [--batch 8] [--turns 15]

The published DeiT-B architecture by default; random weights, float32. With a class token the last
block computes it alone; "all tokens" computes what nobody reads, too, as PyTorch's does. "× first"
is the speed relative to the dense model, turn by turn. The compilation cache is off. Needs torch.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alternate import Make, compare, show

PUBLISHED = Path(__file__).parent.parent / "configs" / "architectures" / "spvit_deit_base.json"


def ours(path: str, batch: int, folded: bool, all_tokens: bool) -> tuple[Callable, dict]:
    """The project's model, compiled."""
    import jax
    from flax import nnx

    jax.config.update("jax_enable_compilation_cache", False)

    from spvit_jax.models import VARIANTS, ViT, ViTSpec
    from spvit_jax.single_path import architecture, prune

    class AllTokens(ViTSpec):
        """A model whose last block is as the others are."""

        @property
        def blocks(self) -> tuple:
            return super().blocks[:1] * self.depth

    choice = architecture.load(path)
    spec: Any = VARIANTS[choice.model]
    if all_tokens:
        spec = AllTokens(**dataclasses.asdict(spec))
    model = ViT(spec, rngs=nnx.Rngs(0))
    if folded:
        model = prune.fold(prune.prune(model, choice, temperature=0.01), batch_norm=True)
    graph, state = nnx.split(model)
    images = jax.random.normal(jax.random.key(0), (batch, 224, 224, 3))
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    begin = time.perf_counter()
    compiled = forward.lower(state, images).compile()
    facts = {"compile_seconds": time.perf_counter() - begin}
    return lambda: jax.block_until_ready(compiled(state, images)), facts


def pytorch(path: str, batch: int) -> tuple[Callable[[], None], dict]:
    """The dense model in eager PyTorch."""
    import torch
    from torch_vit import ViT

    from spvit_jax.models import VARIANTS
    from spvit_jax.single_path import architecture

    spec: Any = VARIANTS[architecture.load(path).model]
    model = ViT(spec.width, spec.depth, spec.heads, spec.hidden).eval()
    images = torch.randn(batch, 3, 224, 224)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run, {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default=str(PUBLISHED))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    contestants: dict[str, tuple[Make, tuple]] = {
        "dense": (ours, (options.architecture, options.batch, False, False)),
        "dense, all tokens": (ours, (options.architecture, options.batch, False, True)),
        "folded": (ours, (options.architecture, options.batch, True, False)),
        "folded, all tokens": (ours, (options.architecture, options.batch, True, True)),
        "dense, PyTorch": (pytorch, (options.architecture, options.batch)),
    }
    title = f"inference, {Path(options.architecture).stem}, batch {options.batch}"
    show(title, compare(contestants, options.turns, options.batch))
