"""What a model gets right: totals that stay on the devices, to which each image adds once."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spvit_jax.config import Data
from spvit_jax.data.errors import DataError
from spvit_jax.data.pipeline import eval_batches, to_device
from spvit_jax.data.sources import Source
from spvit_jax.models import Classifier, Spec
from spvit_jax.progress import Console
from spvit_jax.single_path.gates import Gates
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import (
    batch_sharded,
    gathered,
    local_rows,
    place,
    replicated,
    sharded,
)

Array = jax.Array
HIGHEST = 5  # classes a model may name for a top-5 hit; all of them where there are fewer


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Totals:
    """Counts over the rows so far whose mask is set."""

    confusion: Array  # int32 [classes, classes]: rows are true, columns predicted
    top5: Array  # int32: rows whose class has one of the ``HIGHEST`` logits


EvalStep = jax.stages.Wrapped  # (totals, params, stats, gates, batch) -> totals


def no_totals(classes: int, mesh: Mesh) -> Totals:
    """Totals of nothing, for a model of so many logits."""

    def zeros() -> Totals:
        return Totals(jnp.zeros((classes, classes), jnp.int32), jnp.zeros((), jnp.int32))

    return jax.jit(zeros, out_shardings=replicated(mesh))()


def make_eval_step(
    graph: nnx.GraphDef, normalise: Normalise, mesh: Mesh, params: nnx.State
) -> EvalStep:
    """The jitted step ``(totals, params, stats, gates, batch) -> totals``; the first are donated.

    Of the ``params`` given here only the shapes matter: they say how the arrays are divided.

    A batch is "image" uint8 ``[b, H, W, 3]``, "label" int32 ``[b]`` and "mask" bool ``[b]``. Of
    equal logits the lower class counts as the higher one; PyTorch's ``topk`` leaves it open.
    """

    def step(
        totals: Totals,
        params: nnx.State,
        stats: nnx.State,
        gates: Gates | None,
        batch: dict[str, Array],
    ) -> Totals:
        model = nnx.merge(graph, gathered(mesh, params), stats, copy=True)
        logits = model(normalise(batch["image"]), gates)
        highest = jax.lax.top_k(logits, min(HIGHEST, logits.shape[-1]))[1]
        labels, counted = batch["label"], batch["mask"].astype(jnp.int32)
        hits = (highest == labels[:, None]).any(-1)
        return Totals(
            totals.confusion.at[labels, highest[:, 0]].add(counted),
            totals.top5 + jnp.sum(hits * counted, dtype=jnp.int32),
        )

    everywhere, shards = replicated(mesh), sharded(mesh, params)
    return jax.jit(
        step,
        in_shardings=(everywhere, shards, everywhere, everywhere, batch_sharded(mesh)),
        out_shardings=everywhere,
        donate_argnums=0,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model did. Shares are fractions 0..1."""

    confusion: np.ndarray  # int64 [classes, classes]: rows are true, columns predicted
    top5_hits: int
    left_out: int  # images that could not be decoded, and count nowhere

    @classmethod
    def of(cls, totals: Totals, given: int) -> "Evaluation":
        """The result of all rows of ``given`` images."""
        confusion = np.asarray(totals.confusion).astype(np.int64)
        return cls(confusion, int(totals.top5), given - int(confusion.sum()))

    @property
    def images(self) -> int:
        """Images that were counted, the denominator of ``top1`` and ``top5``."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class has the highest logit."""
        return int(self.confusion.trace()) / self.images

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the five highest logits."""
        return self.top5_hits / self.images

    @property
    def class_images(self) -> np.ndarray:
        """Images of each class, ``[classes]``."""
        return self.confusion.sum(1)

    @property
    def accuracy(self) -> np.ndarray:
        """Of each class's images, the share predicted as it; NaN for a class without images."""
        return _shares(self.confusion.diagonal(), self.class_images)

    @property
    def precision(self) -> np.ndarray:
        """Of the images predicted as each class, the share that are; NaN where none are."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(0))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Counts what models make of the images of ``test``: each of them, once, on all devices.

    It raises ``Interrupted`` where ``should_stop``, asked after every batch, says so; and
    ``DataError`` for an image that cannot be decoded or, with ``data.on_error`` "skip", if none
    can.
    """

    test: Source
    data: Data
    mesh: Mesh
    should_stop: Callable[[], bool]

    @property
    def batch_size(self) -> int:
        """Images of a batch: as configured, or a few more for all devices' sake."""
        return -(-self.data.eval_batch_size // self.mesh.size) * self.mesh.size

    def step(self, model: Classifier) -> EvalStep:
        """The step of models that differ from this one in their numbers alone."""
        normalise = Normalise(self.data.mean, self.data.std)
        params = nnx.state(model, nnx.Param)
        return make_eval_step(nnx.graphdef(model), normalise, self.mesh, params)

    def evaluate(self, model: Classifier, console: Console) -> Evaluation:
        """How ``model`` does; ``console`` shows how far it is."""
        states = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        params, stats = place(states, sharded(self.mesh, states))
        batches = -(-len(self.test) // self.batch_size)
        with console.bar(batches, 0, "evaluate", images=self.batch_size) as bar:
            return self.count(self.step(model), model.spec, params, stats, after_batch=bar.update)

    def count(
        self,
        step: EvalStep,
        spec: Spec,
        params: nnx.State,
        stats: nnx.State,
        gates: Gates | None = None,
        after_batch: Callable[[], object] = lambda: None,
    ) -> Evaluation:
        """How the model of ``spec``, whose ``step`` it is, does with these arrays."""
        totals = no_totals(spec.classes, self.mesh)
        batches = eval_batches(
            self.test,
            self.data,
            batch_size=self.batch_size,
            rows=local_rows(self.mesh, self.batch_size),
            image_size=spec.image_size,
        )
        for batch in batches:
            on_devices = to_device(batch, batch_sharded(self.mesh))
            totals = step(totals, params, stats, gates, on_devices)
            if self.should_stop():
                raise Interrupted("stopped during an evaluation, which begins again")
            after_batch()
        evaluation = Evaluation.of(totals, len(self.test))
        if not evaluation.images:
            raise DataError(
                f"none of the {len(self.test):,} test images can be decoded; see the warnings, and"
                " check data.source"
            )
        return evaluation


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
