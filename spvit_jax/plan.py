"""Before booking accelerators: what a run would take of them, from its compiled programs.

    python -m spvit_jax.plan --config=configs/deit_b.py --devices=64 --chip=v5e

compiles the step of each training that the run would take, for that many chips, on any machine,
and prints the memory of a device, the MACs and the communication of a step, and, at a stated
utilisation, images/s, steps and hours. Nothing is run, and no weight or image is needed.

  --config=FILE.py[:VARIANT]   the run; --config.GROUP.FIELD=... as for spvit_jax.main
  --devices=N                  chips, each a device of JAX: v5litepod-64 and v6e-64 have 64, v4-64
                               and v5p-64, which count cores, 32
  --chip=v5e                   v4, v5e, v5p, v6e; a100, h100, l4
  --utilization=0.3            the share of the chip's peak that steps are assumed to reach
  --images=TRAIN,TEST,CLASSES  sizes of data that is not on this machine; ImageNet's are known

With libtpu (pip install 'jax[tpu]', best in an environment of its own; no TPU is needed) the
programs of TPUs are compiled by TPU's own compiler: their memory is then what a TPU allocates. That
takes minutes for each training. Without it, and for GPUs, the compiler for CPUs stands in.

Exit codes: 0; 1 a program does not fit the memory; 2 bad input, which the message explains.
"""

import math
from functools import partial
from typing import TYPE_CHECKING

from absl import app, flags, logging

from spvit_jax.command_line import CONFIG, parse
from spvit_jax.config import Config, ConfigError, from_config_dict
from spvit_jax.shell import failed, run

if TYPE_CHECKING:
    from spvit_jax.planning.chips import Target
    from spvit_jax.planning.trainings import Images

_DEVICES = flags.DEFINE_integer("devices", None, "Chips, each a device", lower_bound=1)
_CHIP = flags.DEFINE_string("chip", "v5e", "Their kind")
_UTILIZATION = flags.DEFINE_float("utilization", 0.3, "Share of their peak", 0.001, 1.0)
flags.register_validator(_UTILIZATION, math.isfinite, "expected a share in 0.001 to 1")
_IMAGES = flags.DEFINE_list("images", [], "TRAIN,TEST,CLASSES of data that is not here")


def main(arguments: list[str]) -> int:
    """Exit code: 0, 1 where a program does not fit, 2 or 75 after a message on stderr."""
    logging.set_verbosity(logging.WARNING)
    # Imported late: mistyped flags and --help do not wait for it.
    from spvit_jax.pipeline import USER_ERRORS
    from spvit_jax.planning.chips import Target

    try:
        config = from_config_dict(CONFIG.value)
        target = Target.of(_CHIP.value, int(_DEVICES.value or 0))
        return _plan(config, target, _images(config))
    except USER_ERRORS as error:
        return failed(error)


def _images(config: Config) -> "Images":
    from spvit_jax.data.errors import DataError
    from spvit_jax.planning.trainings import Images

    if _IMAGES.value:
        if len(_IMAGES.value) != 3 or not all(part.isdecimal() for part in _IMAGES.value):
            raise ConfigError(
                f"--images={','.join(_IMAGES.value)}: expected three numbers, TRAIN,TEST,CLASSES,"
                " such as --images=50000,10000,10"
            )
        return Images(*map(int, _IMAGES.value))
    try:
        return Images.of(config.data)
    except DataError as error:
        raise DataError(
            f"{error}\nor, to plan without the data, give its sizes: --images=TRAIN,TEST,CLASSES"
        ) from error


def _plan(config: Config, target: "Target", images: "Images") -> int:
    """Compiles and prints; the exit code."""
    from spvit_jax.planning.forecast import forecast
    from spvit_jax.planning.outlook import Outlook
    from spvit_jax.planning.trainings import trainings
    from spvit_jax.progress import Console
    from spvit_jax.training.sharding import check_batch, make_mesh

    mesh, console = make_mesh(config.sharding.fsdp, target.devices), Console()
    planned = list(trainings(config, images))
    for one in planned:
        check_batch(one.name, getattr(config, one.name), mesh.size)
    forecasts = []
    for one in planned:
        console.stage("compile", f"{one.name} for {target.name}, by {target.compiler}")
        forecasts.append(forecast(one, config, images, mesh))
    outlook = Outlook(config, target, images, _UTILIZATION.value, forecasts)
    remarks = [f"{one.name}: {one.remark}" for one in planned if one.remark]
    console.say(f"\n{outlook.table()}\n\n{outlook.assumptions(remarks)}")
    return 0 if outlook.fits else 1


def command() -> None:
    """Runs as a program."""
    flags_parser = partial(parse, help_text=__doc__, needed=(CONFIG, _DEVICES))
    run(partial(app.run, main, flags_parser=flags_parser))


if __name__ == "__main__":
    command()
