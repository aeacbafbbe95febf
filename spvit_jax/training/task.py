"""One optimisation before it meets devices and images: what a stage runs and a plan compiles."""

import dataclasses

import optax
from flax import nnx

from spvit_jax.config import Config, Data, Training
from spvit_jax.data.pipeline import steps_per_epoch
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.optim import optimizer, schedule
from spvit_jax.training.step import Objective, TrainState, init_state


@dataclasses.dataclass(frozen=True)
class Task:
    """How long a training is, what it minimises, and by which steps."""

    training: Training
    steps: int
    steps_per_epoch: int
    optimiser: optax.GradientTransformation
    objective: Objective
    gates: Gates  # gate logits to begin with; () where there are none
    seed: int

    @classmethod
    def of(
        cls, config: Config, training: Training, images: int, gating: Gating | None = None
    ) -> "Task":
        """The task of ``training``, a part of ``config``, on so many images.

        Raises:
          DataError: they are less than a batch.
        """
        per_epoch = steps_per_epoch(images, training.batch_size)
        steps = max(round(training.epochs * per_epoch), 1)
        rate = schedule(training, steps, per_epoch)
        return cls(
            training,
            steps,
            per_epoch,
            optimizer(training, rate, gating.learning_rate if gating else 0.0),
            make_objective(config.data, training, gating),
            gating.initial() if gating else (),
            config.seed,
        )

    def initial(self, model: nnx.Module) -> TrainState:
        """The state of step 0, which trains ``model``."""
        return init_state(
            model,
            self.optimiser,
            gates=self.gates,
            seed=self.seed,
            average=self.training.ema_decay > 0,
        )

    def evaluation_steps(self, every: float) -> int:
        """Steps between evaluations that are ``every`` epochs apart; 0: at the end only."""
        return round(every * self.steps_per_epoch)


def make_objective(data: Data, training: Training, gating: Gating | None) -> Objective:
    """What ``training`` minimises; ``gating`` is a search's."""
    return Objective(
        normalise=Normalise(data.mean, data.std),
        erasing=data.erasing,
        mixup=data.mixup,
        cutmix=data.cutmix,
        label_smoothing=training.label_smoothing,
        distillation=training.distillation,
        distillation_weight=training.distillation_weight,
        distillation_temperature=training.distillation_temperature,
        gating=gating,
        accumulation=training.accumulation,
        ema_decay=training.ema_decay,
    )
