"""What wrappers and towers put before a model's names, taken off; what is beside it, left out."""

import re
from collections.abc import Iterable

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.spellings.rules import Spelling, left_out_note

RATHER = (  # of two models in a checkpoint, the part of a prefix that is taken, and the other's
    ("teacher", "student"),
    ("model_ema", "model"),
    ("ema", "model"),
    ("base_encoder", "momentum_encoder"),
    ("encoder_q", "encoder_k"),
)
BESIDE = (  # what stands beside an image model, outside of its prefix
    (r"^(text|text_model|txt|language_model)[./]", "the text tower"),
    (r"^(transformer\.resblocks|token_embedding|ln_final)\.", "the text tower"),
    (r"^(positional_embedding|text_projection|attn_mask)$", "the text tower"),
    (r"^(text_projection|multi_modal_projector|lm_head)\.", "the text tower"),
    (r"^(logit_scale|logit_bias|t|b)$", "the scale of similarities to texts"),
    (r"^state/", "the optimizer's state"),
    (r"^n_averaged$", "how many models were averaged"),
)


def find(spelling: Spelling, state: State) -> str | None:
    """The prefix of the model that a state in this spelling holds; None: it is not in it.

    Raises:
      CheckpointError: it holds several, and nothing tells which is meant.
    """
    separator = spelling.separator
    prefixes = [
        name.removesuffix(spelling.anchor)
        for name in state
        if name == spelling.anchor or name.endswith(separator + spelling.anchor)
    ]
    prefixes = [
        prefix
        for prefix in prefixes
        if all(any(n.startswith(prefix + sign) for n in state) for sign in spelling.signs)
    ]
    if not prefixes:
        return None
    chosen = [one for one in prefixes if not any(_rather(two, one, separator) for two in prefixes)]
    if len(chosen) > 1:
        raise CheckpointError(
            f"the checkpoint holds {len(chosen)} models, under"
            f" {', '.join(repr(prefix) for prefix in chosen)}; save the one that is meant alone"
        )
    return chosen[0]


def take_off(spelling: Spelling, prefix: str, state: State, notes: list[str]) -> State:
    """The state without a prefix, or without what of it a name has; others' arrays left out.

    Args:
      spelling: whose ``find`` found the prefix.
      prefix: with its last separator.
      state: not changed.
      notes: gets a sentence on the prefix, and one for each kind of arrays that is left out.

    Raises:
      CheckpointError: two names become the same.
    """
    if not prefix:
        return state
    separator = spelling.separator
    parts = prefix.split(separator)[:-1]
    rivals = _rivals(spelling, prefix, state)
    arrays: State = {}
    left_out: dict[str, list[str]] = {}
    for name, value in state.items():
        inside = name.startswith(prefix)
        short = name.removeprefix(prefix) if inside else _shortened(name, parts, separator)
        what = None
        if any(name.startswith(rival) for rival in rivals):
            what = "another model"
        elif not inside:
            what = next((what for pattern, what in BESIDE if re.search(pattern, short)), None)
        if what is not None:
            left_out.setdefault(what, []).append(name)
        elif short in arrays:
            raise CheckpointError(
                f"without the prefix {prefix!r} two names of the checkpoint are {short}; keep the"
                " one that belongs to the model"
            )
        else:
            arrays[short] = value
    notes.append(f"took the prefix {prefix!r} off the checkpoint's names")
    notes.extend(left_out_note(what, names) for what, names in left_out.items())
    return arrays


def _rather(one: str, other: str, separator: str) -> bool:
    """Whether the model under the first prefix is taken instead of that under the other."""
    ours, theirs = one.split(separator), other.split(separator)
    return any(a in ours and b in theirs and a not in theirs for a, b in RATHER)


def _rivals(spelling: Spelling, prefix: str, state: State) -> set[str]:
    """What the names of other models begin with that the chosen one's do not."""
    separator = spelling.separator
    rivals = set()
    for name in state:
        if name.endswith(separator + spelling.anchor) and name != prefix + spelling.anchor:
            parts = name.removesuffix(spelling.anchor).split(separator)[:-1]
            same = _common(parts, prefix.split(separator))
            if same < len(parts):
                rivals.add(separator.join(parts[: same + 1]) + separator)
    return {rival for rival in rivals if not prefix.startswith(rival)}


def _shortened(name: str, parts: list[str], separator: str) -> str:
    """A name without the parts of a prefix that it begins with."""
    own = name.split(separator)
    return separator.join(own[min(_common(own, parts), len(own) - 1) :])


def _common(one: Iterable[str], other: Iterable[str]) -> int:
    """How many parts are the same from the start."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
