"""Prune a vision transformer with one command:

    python -m spvit_jax.main --config=configs/quickstart.py --workdir=/tmp/spvit

finds an architecture under a budget, prunes, repairs, fine-tunes, folds and measures it. All that
it makes goes to --workdir. After an interruption the same command goes on where it was; once
finished it prints the result again.

  --config=FILE.py           what to do: one of configs/, or a file of your own; --config=NAME is
                             the one of that name, wherever you are: quickstart, own_data, backbone,
                             fashion_mnist, deit_ti, deit_s, deit_b, swin_t, swin_s, swin_b
  --config=NAME:VARIANT      one of the variants that the file's first lines name, such as tiny
  --config.GROUP.FIELD=...   changes one field; spvit_jax/config.py says what each means
  --workdir=FOLDER           where checkpoints, metrics (TensorBoard reads them) and results go;
                             also gs://BUCKET/FOLDER
  --profile=FOLDER           writes a jax.profiler trace of five steps of each training there

--config.stage is one of
  all        score, search, try, fine-tune and report, what the config has of these (if nothing
             else is said)
  search     the same up to the decision: ends with architecture.json
  frontier   scores once, then chooses and repairs a model for each of eight budgets, in minutes,
             without training or labels: frontier.html, and a folder for each
  finetune   prunes to --config.finetune.architecture=FILE.json and fine-tunes
  evaluate   measures --config.model.checkpoint, dense or pruned: top-1, top-5, each class
  pretrain   trains the dense model from scratch

Examples, each in a --workdir of its own:
  --config=configs/quickstart.py:tiny                          the whole pipeline in a minute
  --config=configs/quickstart.py --config.budget.macs=0.7
  --config=configs/quickstart.py:paper                         the paper's search, with labels
  --config=configs/deit_s.py:stage=finetune                    a published architecture

Several hosts run the same command, with a --workdir that all of them see. On TPU pods and under
SLURM they find each other; elsewhere each is told --coordinator=HOST:PORT (of process 0),
--processes=N and --process=I. --config.sharding.fsdp=8 divides the weights among 8 devices. How
many devices and hosts there are may change between one start and the next.

Ctrl-C or SIGTERM, to any of the processes, ends the step, saves it and exits with 130 or 143 on
all of them. Outside of training, as in a compilation, it ends what begins again within two seconds.
A second one exits at once.
Exit codes: 0 finished; 2 bad input, which the message explains; 75 a fault of a disk or network
that may pass; 130 and 143 stopped and saved; others: a crash or a lost host. But for 2 the same
command goes on from the last checkpoint.
"""

import os
import signal
import sys
import traceback
from functools import partial

from absl import app, flags, logging

from spvit_jax.command_line import CONFIG, parse
from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.shell import PASSES, failed, is_exhausted, run
from spvit_jax.signals import Signals

_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints and results go")
_PROFILE = flags.DEFINE_string("profile", "", "Folder for a jax.profiler trace")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0")
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes take part")
_PROCESS = flags.DEFINE_integer("process", -1, "The number of this one, from 0")


def main(arguments: list[str]) -> int:
    """Exit code: 0 finished, 2 bad input, 128 + the signal where one stopped the run."""
    logging.set_verbosity(logging.WARNING)
    signals = Signals()
    signals.listen()
    # Imported late: mistyped flags and --help do not wait for it, and signals do.
    import jax

    from spvit_jax import hosts

    try:
        hosts.connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except hosts.HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signals.catch()  # again: joining the others takes SIGTERM

    from spvit_jax import pipeline
    from spvit_jax.progress import Console
    from spvit_jax.remote import is_full, is_transient, is_utf8, public

    name = f"process {jax.process_index()}: " if jax.process_index() else ""
    try:
        workdir = os.path.expanduser(str(_WORKDIR.value))
        if not is_utf8(workdir):
            raise ConfigError(f"--workdir={public(workdir)} is not UTF-8; choose another name")
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", f"{workdir}/compilation_cache")
        config, should_stop = from_config_dict(CONFIG.value), hosts.Stop(signals)
        pipeline.run(config, workdir, Console(), should_stop, profile=_PROFILE.value)
    except pipeline.Interrupted as stopped:
        if not name:
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + (signals.received or [signal.SIGTERM])[0]
    except pipeline.USER_ERRORS as error:
        passes = is_transient(error)
        advice = "; where that passes, the same command goes on" if passes else ""
        if is_full(error):
            advice = f"; free some space for {workdir}, and the same command goes on"
        print(f"{name}error: {error}{advice}", file=sys.stderr)
        code = PASSES if passes else 2
        hosts.leave(code)
        return code
    except Exception as error:
        code = failed(error) if is_exhausted(error) else 1
        if code == 1:
            traceback.print_exc()
        hosts.leave(code)
        return code
    return 0


def command() -> None:
    """Runs as a program."""
    flags_parser = partial(parse, help_text=__doc__, needed=(CONFIG, _WORKDIR))
    run(partial(app.run, main, flags_parser=flags_parser))


if __name__ == "__main__":
    command()
