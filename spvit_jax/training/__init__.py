"""Trainings: a step, the loop around it, and what a loss, a batch and a teacher are.

``fit`` trains any model with a loss and batches of one's own; ``recipe`` makes a run's trainings of
its config.
"""

from spvit_jax.training.fitting import fit

__all__ = ["fit"]
