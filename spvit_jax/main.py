"""Prune a vision transformer: ``python -m spvit_jax.main --config=configs/quickstart.py``.

The config is a Python file; ``--config=FILE.py:VARIANT`` picks one of its variants, and
``--config.search.epochs=5`` changes one field. The same command goes on after an interruption,
and prints the result again once it is finished.
"""

import os
import signal
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.convert import CheckpointError as PretrainedError
from spvit_jax.data.errors import DataError
from spvit_jax.pipeline import run
from spvit_jax.progress import Console
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.training.checkpoint import CheckpointError
from spvit_jax.training.loop import Interrupted, NonFiniteLoss

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and results go.")

USER_ERRORS = (
    ArchitectureError,
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLoss,
    PretrainedError,
)


def main(arguments: list[str]) -> int:
    """Exit code: 0 finished, 2 bad input, 128 + the signal where one stopped the run."""
    if len(arguments) > 1:
        print(f"unexpected argument {arguments[1]!r}; flags start with --", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: _stop(number, received))
    try:
        config = from_config_dict(_CONFIG.value)
        workdir = Path(_WORKDIR.value).expanduser()
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
        run(config, workdir, Console(), lambda: bool(received))
    except Interrupted as stopped:
        print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + received[0]
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _stop(number: int, received: list[int]) -> None:
    """The first signal lets the step end and be saved; a second one ends the process."""
    if received:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    received.append(number)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
