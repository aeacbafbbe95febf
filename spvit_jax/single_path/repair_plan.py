"""``Plan``: what a repair works on, in shapes that hardly depend on what is kept."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from spvit_jax.models import Geometry
from spvit_jax.models.layers import Attention, Dense
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.axes import FfnAxis, HeadsAxis, Kept
from spvit_jax.single_path.calibration import bare
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.prune import fold, form, prune

LEVELS = 8  # numbers of FFN units that are worked on, whatever the number that is kept


class Plan(NamedTuple):
    """A model to be worked on, in shapes that hardly depend on what is kept of it.

    So programs compiled for one architecture serve every other one of the same dense model: heads
    are all there, FFN units to the next of ``LEVELS``.
    """

    model: Any
    architecture: Architecture
    geometries: tuple[Geometry, ...]  # of its blocks, tokens merged
    rows: list[dict[str, np.ndarray]]  # of each block: of its output projection and fc2, the kept
    free: tuple[bool, ...]  # blocks whose convolution is fitted from nothing
    kept: tuple[tuple[int, ...], ...] | None  # heads of each block; None: it is cut already


def plan(model: Any, architecture: Architecture | None) -> Plan:
    """Makes the plan of a model, to be pruned to an architecture or, without one, pruned already.

    Raises:
      ArchitectureError: the architecture does not fit the model.
    """
    if architecture is not None and form(model) == "supernet":
        model, architecture = prune(model, architecture), None
    if architecture is None:
        work = bare(fold(model, batch_norm=True))
        rows = [_all_rows(block) for block in work.blocks]
        geometries = work.architecture.geometries(work.spec)
        for block in work.blocks:
            block.merges = 0
        return Plan(work, work.architecture, geometries, rows, (False,) * len(rows), None)
    geometries = architecture.geometries(model.spec)
    pruned = fold(prune(model, architecture), batch_norm=True)
    work, heads, rows, free = bare(model), [], [], []
    for i, geometry in enumerate(geometries):
        block, kept = work.blocks[i], architecture.of_block(i, model.spec)
        op, units = kept["op"], _keep_units(block, kept["ffn"])
        heads.append(HeadsAxis().indices(kept["heads"], block) if op == "msa" else ())
        by_head = np.arange(geometry.width).reshape(-1, geometry.head_dim)
        kept_rows = by_head[list(heads[i]), : geometry.value_dim].ravel()
        rows.append({"mixer": kept_rows, "ffn": np.arange(units)})
        free.append(OPS[op].size > 0 and not geometry.class_only)
        if op != "msa":
            block.mixer, block.norm1 = pruned.blocks[i].mixer, pruned.blocks[i].norm1
        elif geometry.merges:
            _without_keys(block.mixer.qk, by_head[list(heads[i])].ravel())
    return Plan(work, pruned.architecture, geometries, rows, tuple(free), tuple(heads))


def _keep_units(block: Any, kept: Kept) -> int:
    """Takes FFN units out, but for some behind the kept ones, up to a level; how many are kept."""
    units, all_units = FfnAxis().indices(kept, block), np.arange(block.ffn.fc2.kernel.shape[0])
    step = -(-len(all_units) // LEVELS)
    more = max(-(-len(units) // step), 1) * step - len(units)
    FfnAxis().prune(block, (*units, *np.setdiff1d(all_units, units)[:more].tolist()))
    return len(units)


def _without_keys(qk: Dense, kept: np.ndarray) -> None:
    """Takes the keys away by which tokens are merged, but for those of the heads that are kept."""
    width = len(qk.bias[...]) // 2
    stays = np.zeros(2 * width, bool)
    stays[:width] = stays[width + kept] = True
    qk.kernel[...] = jnp.where(stays, qk.kernel[...], 0)
    qk.bias[...] = jnp.where(stays, qk.bias[...], 0)


def _all_rows(block: Any) -> dict[str, np.ndarray]:
    out = getattr(block.mixer, "out", None)
    mixing = np.arange(0 if out is None else out.kernel.shape[0])
    return {"mixer": mixing, "ffn": np.arange(block.ffn.fc2.kernel.shape[0])}


def cut(made: Plan, model: Any) -> Any:
    """Cuts what was worked on down to what is kept, and gives back what regularises training."""
    work, architecture = made.model, made.architecture
    for i, block in enumerate(work.blocks):
        block.merges = made.geometries[i].merges
        if isinstance(block.mixer, Attention) and made.kept is not None:
            block.mixer.keep_dims(made.geometries[i].key_dim, made.geometries[i].value_dim)
            block.mixer.keep_heads(made.kept[i])
        if made.kept is not None:
            FfnAxis().prune(block, tuple(made.rows[i]["ffn"].tolist()))
        for name in ("dropout", "drop_path"):
            setattr(block, name, getattr(model.blocks[i], name))
        block.ffn.dropout = model.blocks[i].ffn.dropout
    work.architecture = architecture
    return work
