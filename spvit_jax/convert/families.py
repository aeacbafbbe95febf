"""Which family a checkpoint or a model is of: the one place that decides by names or by type."""

from collections.abc import Container
from typing import Any, Protocol

import numpy as np

from spvit_jax.convert import forms, regnet, swin, vit
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts
from spvit_jax.convert.plain import plain
from spvit_jax.convert.spellings import SPELLINGS, spelled
from spvit_jax.convert.spellings.nearest import nearest
from spvit_jax.convert.tables import Arrays, Rule, revert
from spvit_jax.models import RegNetSpec, SwinSpec, ViTSpec
from spvit_jax.single_path.prune import form

BUFFERS = (  # of no use here: they follow from the rest
    "num_batches_tracked",
    "relative_position_index",
    "attn_mask",
    "assigned_indicator_index",
)


class Family(Protocol):
    """What the module of each family says of its checkpoints."""

    KIND: str  # a name and some of its arrays, for error messages

    def recognises(self, state: State) -> bool:
        """Whether a checkpoint looks like one of these."""

    def form_of(self, state: State) -> str:
        """Which of ``forms.FORMS`` it is in; never deploy, which looks folded."""

    def spec_from_state(self, state: State, facts: Facts) -> Any:
        """The spec of the dense model it comes from, by its shapes and what is known besides."""

    def block_names(self, spec: Any) -> tuple[str, ...]:
        """What a checkpoint calls each block that search may replace."""

    def table(
        self, form: str, spec: Any, ops: tuple[str, ...] = (), names: Container[str] = ()
    ) -> tuple[Rule, ...]:
        """The rules between a checkpoint and our model.

        Args:
          form: which the model is in.
          spec: the dense model's.
          ops: of each block of a pruned model.
          names: of the checkpoint that is read, where several conventions are in use.
        """

    def buffers(self, spec: Any, ops: tuple[str, ...]) -> State:
        """What the released code's strict loading wants of a pruned model beside its weights."""

    def fit(self, state: State, spec: Any, notes: list[str], facts: Facts) -> None:
        """Changes a dense checkpoint for another image size or number of classes; says so."""


FAMILIES: dict[type, Family] = {ViTSpec: vit, SwinSpec: swin, RegNetSpec: regnet}


def recognise(
    state: State, notes: list[str] | None = None, facts: Facts = UNKNOWN
) -> tuple[Family, State]:
    """The family of a checkpoint, and the checkpoint without what timm adds to a plain model.

    Args:
      state: in the names of any code base that is known; not changed.
      notes: gets a sentence for each thing that was renamed or left out.
      facts: what is said of it besides.

    Raises:
      CheckpointError: of none that is known, or with a part that none has.
    """
    notes = [] if notes is None else notes
    state = spelled(state, notes)
    if "head.weight" in state and "head.bias" not in state:
        notes.append(
            "the checkpoint's head has no bias: zeros are taken; if its model has one, take a whole"
            " checkpoint"
        )
    state = plain(state, facts)
    for family in FAMILIES.values():
        if family.recognises(state):
            return family, state
    known = "".join(f"\n  {family.KIND}" for family in FAMILIES.values())
    raise CheckpointError(
        f"expected a checkpoint of one of{known}\nthis one has {len(state)} names:"
        f" {', '.join(list(state)[:5])} …{nearest(state, SPELLINGS)}"
    )


def ignored(name: str) -> bool:
    """Whether a name of a checkpoint has no counterpart here and needs none."""
    return name.rpartition(".")[2] in BUFFERS


def revert_model(model: Any, **more: np.ndarray) -> Arrays:
    """A model's weights in a checkpoint's names; nothing that only strict loading needs.

    Args:
      model: of any form but a supernet.
      more: arrays in our names that are not the model's: with batch norms, a deployed model has
        the names of a folded one.

    Raises:
      CheckpointError: the released code has no such operation.
    """
    arrays = {name: np.asarray(value) for name, value in forms.variables(model).items()}
    of = {"deploy": "folded"}.get(form(model), form(model))
    ops = model.architecture.ops if model.architecture else ()
    return revert(FAMILIES[type(model.spec)].table(of, model.spec, ops), arrays | more)
