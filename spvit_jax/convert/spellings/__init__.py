"""The same models in other code bases' names, renamed as timm has them.

``rules`` says what a table of names is; ``hugging_face``, ``open_clip``, ``jax_names`` and ``timm``
hold the tables. ``prefixes`` takes off what wrappers put before the names, ``parts`` joins and
splits what is stored together here and apart there.
"""

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.spellings import hugging_face, jax_names, open_clip, timm
from spvit_jax.convert.spellings.parts import regrouped
from spvit_jax.convert.spellings.prefixes import find, take_off
from spvit_jax.convert.spellings.rules import Spelling, left_out_note, rewrite

__all__ = ["SPELLINGS", "heads_of", "spelled"]

SPELLINGS: tuple[Spelling, ...] = (  # the first that a state is in
    *hugging_face.SPELLINGS,
    *open_clip.SPELLINGS,
    *jax_names.SPELLINGS,
    *timm.SPELLINGS,
)
heads_of = jax_names.heads_of


def spelled(state: State, notes: list[str]) -> State:
    """A checkpoint in timm's names, whichever code base it is of.

    Queries, keys and values are one array, gate and input of a SwiGLU two; a state in timm's names
    or in those SPViT released is returned as it is, as is one that nobody knows.

    Args:
      state: a checkpoint's arrays; not changed.
      notes: gets a sentence for the spelling, the prefix and each kind of arrays left out.

    Raises:
      CheckpointError: some names belong to nothing that is known, or arrays do not fit together.
    """
    for spelling in SPELLINGS:
        prefix = find(spelling, state)
        if prefix is None:
            continue
        arrays = take_off(spelling, prefix, state, notes)
        if spelling is jax_names.JAX:
            arrays = jax_names.unstacked(arrays)
        renamed = regrouped(rewrite(spelling, arrays, notes))
        if not spelling.lenient:
            notes.append(f"renamed the arrays of {spelling.title} as timm has them")
        if spelling is hugging_face.CLIP and "classifier.weight" in arrays:
            _average(renamed, notes)
        if not spelling.lenient or "head.proj.weight" in arrays:
            _fill_head(renamed, notes)
        _note_wide_head(renamed, notes)
        return state if _same(renamed, state) else renamed
    return state


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _average(state: State, notes: list[str]) -> None:
    """What transformers classifies by: the average of SigLIP's patches, its pooling unused.

    Raises:
      CheckpointError: CLIP's, which are averaged before the last norm.
    """
    if "cls_token" in state:
        raise CheckpointError(
            "transformers' classifier on CLIP reads the average of the patches without the last"
            " norm, as no model here does; take the vision tower (CLIPVisionModel) and train a"
            " classifier here"
        )
    pool = [name for name in state if name.startswith("attn_pool.")]
    for name in pool:
        del state[name]
    if pool:
        notes.append(left_out_note("attention pooling, which its classifier does not use", pool))


def _fill_head(state: State, notes: list[str]) -> None:
    """A projection without bias is a head with one of zeros, but of no classes: that is said."""
    weight = state.get("head.weight")
    if weight is not None and weight.ndim == 2 and "head.bias" not in state:
        state["head.bias"] = weight[:, 0] * 0
        notes.append(
            f"its projection to {len(weight)} features is kept as a head, whose outputs are no"
            " classes; model.output=features leaves it out"
        )


def _note_wide_head(state: State, notes: list[str]) -> None:
    weight, token = state.get("head.weight"), state.get("cls_token")
    if weight is None or token is None or weight.ndim != 2:
        return
    if weight.shape[1] == 2 * token.shape[-1]:
        notes.append(
            "the classifier reads the class token and the average of the patches side by side:"
            f" head.weight {list(weight.shape)} on {token.shape[-1]} features"
        )
