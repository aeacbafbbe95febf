"""What a model gets right: totals that stay on the devices, to which each image adds once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spvit_jax.single_path.gates import Gates
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, gathered, replicated, sharded

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
        """Those that were counted, the denominator of ``top1`` and ``top5``."""
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


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
