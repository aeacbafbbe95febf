"""Latency and throughput of models next to each other; the command is ``__main__``."""

from spvit_jax.measure.turns import Programs, Timing, measure

__all__ = ["Programs", "Timing", "measure"]
