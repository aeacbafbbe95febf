"""What a table of names is made of, and how a state is rewritten by one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError

WORDS = {  # what stands in braces in a source
    "i": r"\d+",  # a block
    "s": r"\d+",  # a stage
    "w": "weight|bias",
    "n": "[12]",
    "p": "[qkv]",
}
Change = Callable[[np.ndarray], np.ndarray]


def same(value: np.ndarray) -> np.ndarray:
    """The array as it is."""
    return value


def transposed(value: np.ndarray) -> np.ndarray:
    """``[in, out]`` as ``[out, in]``."""
    return np.ascontiguousarray(value.T)


def batched(value: np.ndarray) -> np.ndarray:
    """``[n, D]`` as ``[1, n, D]``; what has three axes stays."""
    return value if value.ndim == 3 else value[None]


def token(value: np.ndarray) -> np.ndarray:
    """``[D]`` as ``[1, 1, D]``."""
    return value.reshape(1, 1, -1)


@dataclass(frozen=True)
class Rule:
    """One kind of array: its name, timm's name for it, and what becomes of the array.

    ``{i}``, ``{s}``, ``{w}``, ``{n}`` and ``{p}`` stand for a part of the name, see ``WORDS``, a
    vertical bar for either of two; in the target, ``{next}`` is the stage after ``{s}``.
    """

    source: str
    target: str
    change: Change = same

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the whole of a name."""
        text = re.escape(self.source).replace(r"\|", "|").replace(r"\(", "(?:").replace(r"\)", ")")
        for word, meaning in WORDS.items():
            text = text.replace(rf"\{{{word}\}}", f"(?P<{word}>{meaning})", 1)
        return re.compile(text)

    def named(self, name: str) -> str | None:
        """The target of a name; None: the rule is not about it."""
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        words = match.groupdict()
        return self.target.format(next=int(words.get("s", 0)) + 1, **words)


@dataclass(frozen=True)
class Spelling:
    """The names that one code base gives to the arrays of its models.

    Attributes:
      title: for messages.
      anchor: the end of a name that every model has, once; what comes before is a prefix.
      signs: what some names start with, behind the prefix; all of them, for a model to be of it.
      rules: the first that matches a name counts.
      ignored: patterns of names that are left out, and what those are.
      lenient: whether names that no rule knows stay as they are.
      checked: what it was compared with, for the table of docs/backbones.md.
    """

    title: str
    anchor: str
    signs: tuple[str, ...]
    rules: tuple[Rule, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    lenient: bool = False
    checked: str = ""

    @property
    def separator(self) -> str:
        """What stands between the parts of a name."""
        return "/" if "/" in self.anchor else "."


def rewrite(spelling: Spelling, state: State, notes: list[str]) -> State:
    """A state in timm's names, some of them still apart; see ``parts``.

    Args:
      spelling: whose names these are, their prefix taken off.
      state: not changed.
      notes: gets a sentence for each kind of arrays that is left out.

    Raises:
      CheckpointError: names that no rule knows, all of them, or two arrays for one of timm's.
    """
    arrays: State = {}
    unknown: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, value in state.items():
        what = next((what for p, what in spelling.ignored if re.search(p, name)), None)
        if what is not None:
            left_out.setdefault(what, []).append(name)
            continue
        rule, target = _rule_of(spelling, name)
        if rule is None and not spelling.lenient:
            unknown.append(f"{name} {list(value.shape)}")
            continue
        if target in arrays:
            raise CheckpointError(
                f"{name} and another array of the checkpoint are both {target}, in timm's names;"
                " keep the one that belongs to the model"
            )
        arrays[target] = value if rule is None else _changed(rule, name, value)
    if unknown:
        raise CheckpointError(
            f"the checkpoint looks like {spelling.title}, but {len(unknown)} of its {len(state)}"
            " names belong to nothing that is known there:\n  " + "\n  ".join(unknown)
        )
    for what, names in left_out.items():
        notes.append(left_out_note(what, names))
    return arrays


def left_out_note(what: str, names: list[str]) -> str:
    """The sentence for arrays that are left out."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"left out {what}: {names[0]}{more}"


def _rule_of(spelling: Spelling, name: str) -> tuple[Rule | None, str]:
    """The rule for a name and what it makes of it; without one, the name."""
    for rule in spelling.rules:
        target = rule.named(name)
        if target is not None:
            return rule, target
    return None, name


def _changed(rule: Rule, name: str, value: np.ndarray) -> np.ndarray:
    try:
        return rule.change(value)
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{name} is of shape {list(value.shape)}, which does not become {rule.target}: {error}"
        ) from error
