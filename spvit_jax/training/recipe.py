"""From a config to a training that has not met devices or images: what a plan compiles too."""

import dataclasses
from functools import partial

import jax
from flax import nnx
from jax.sharding import Mesh

from spvit_jax.config import Config, Training
from spvit_jax.data.pipeline import steps_per_epoch
from spvit_jax.single_path.gating import Gating
from spvit_jax.training import losses
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.optim import optimizer, schedule
from spvit_jax.training.prepare import prepare_images
from spvit_jax.training.step import Loss, Step, TrainState
from spvit_jax.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long a training is, and by which steps."""

    step: Step
    steps: int
    steps_per_epoch: int
    batch_size: int  # images per step, over all devices
    seed: int

    @classmethod
    def of(
        cls,
        config: Config,
        training: Training,
        images: int,
        classes: int,
        *,
        gating: Gating | None = None,
        steps: int = 0,
    ) -> "Recipe":
        """The recipe of ``training``, a part of ``config``.

        Args:
          images: how many there are to train on.
          classes: of the model.
          gating: of a search.
          steps: to take; 0: as many as ``training.epochs`` has.

        Raises:
          DataError: the images are less than a batch.
        """
        per_epoch = steps_per_epoch(images, training.batch_size)
        steps = steps or max(round(training.epochs * per_epoch), 1)
        prepare = partial(
            prepare_images,
            normalise=Normalise(config.data.mean, config.data.std),
            classes=classes,
            erasing=config.data.erasing,
            mixup=config.data.mixup,
            cutmix=config.data.cutmix,
            label_smoothing=training.label_smoothing,
            features=training.distillation == "features",
        )
        rate = schedule(training, steps, per_epoch)
        step = Step(
            loss=make_loss(training),
            optimizer=optimizer(training, rate, gating.learning_rate if gating else 0.0),
            prepare=prepare,
            gating=gating,
            accumulation=training.accumulation,
            ema_decay=training.ema_decay,
        )
        return cls(step, steps, per_epoch, training.batch_size, config.seed)

    def initial(self, model: nnx.Module) -> TrainState:
        """The state of step 0, which trains ``model``."""
        return self.step.initial(model, self.seed)

    def program(
        self, graph: nnx.GraphDef, mesh: Mesh, state: TrainState, teacher: Teacher | None = None
    ) -> jax.stages.Wrapped:
        """The jitted ``(teacher's arrays, state, batch) -> (state, metrics)``; see ``Step``.

        ``teacher`` is what the loss of a distillation needs; None stands for None of its arrays.
        """
        if teacher is None:
            return self.step.program(graph, mesh, state)
        prepare = partial(self.step.prepare, teacher=teacher)  # type: ignore[call-arg]
        step = dataclasses.replace(self.step, prepare=prepare)
        return step.program(graph, mesh, state, teacher.state)

    def steps_in(self, epochs: float) -> int:
        """Whole steps in so many epochs."""
        return round(epochs * self.steps_per_epoch)


def make_loss(training: Training) -> Loss:
    """The loss of ``training``, which has it by the name of what it distils."""
    weight, temperature = training.distillation_weight, training.distillation_temperature
    distill = partial(losses.distillation, weight=weight)
    soft = partial(losses.soft_distance, temperature=temperature)
    table: dict[str, Loss] = {
        "none": losses.classification,
        "hard": partial(distill, distance=losses.hard_distance),
        "soft": partial(distill, distance=soft),
        "features": partial(losses.feature_distillation, weight=weight),
    }
    return table[training.distillation]
