"""A model in a line: what family it is of, how large, and what has been done to it."""

from typing import Any

from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import describe
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import form
from spvit_jax.sizes import shown


def described(model: Any) -> str:
    """Says family, blocks, width, image size, classes, parameters, MACs and form of a model."""
    spec, kept = model.spec, model.architecture
    blocks = getattr(spec, "blocks", ())
    facts = [f"images of {shown(spec.image_size)} pixels"]
    if blocks:
        widths = sorted({block.width for block in blocks})
        wide = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        facts.insert(0, f"{len(blocks)} blocks, {wide} wide")
    facts.append(f"{spec.classes:,} classes" if spec.classes else "no head")
    facts.append(f"{_short(count_parameters(model))} parameters")
    if blocks and form(model) != "supernet":
        macs = prices.macs(spec).dense if kept is None else kept.macs(spec)
        facts.append(f"{_short(macs)} MACs")
    facts.append(f"{form(model)} form" if blocks else "dense form")
    if kept is not None:
        facts.append(describe(kept, spec))
    return f"<{type(model).__name__}: {', '.join(facts)}>"


def _short(count: int) -> str:
    """Three digits and a unit: 22.1 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
