"""What the parts of a model cost in time, on the device that is here: the table of budget.latency.

    python -m spvit_jax.prices --config=configs/deit_s.py --batch=1 --output=table.json
    python -m spvit_jax.main --config=configs/deit_s.py --config.budget.macs=0 \\
        --config.budget.latency=table.json:0.6 --workdir=...

times blocks of the dense model that have one part only, as it is deployed: each of search.ops,
attention with 1 to all of its heads, an FFN of 0 to all of its units. They take turns with the dense
model, and the table is scaled once so that the parts together explain the dense model's time. It
takes a minute or two. No weight and no image is needed.

  --config=FILE.py[:VARIANT]  the run; --config.GROUP.FIELD=... as for spvit_jax.main
  --batch=1                   images a call
  --output=TABLE.json         by default it is named after model, device and batch
  --seconds=60                time given to the calls; compiling not included

Other work on the machine counts as the model's: measure while it is idle, or give more seconds.

Exit codes: 0; 2 bad input, which the message explains.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import app, flags, logging

from spvit_jax.command_line import CONFIG, parse
from spvit_jax.config import Config, ConfigError, from_config_dict

if TYPE_CHECKING:
    import jax
    import numpy as np

    from spvit_jax.models import Geometry
    from spvit_jax.progress import Console
    from spvit_jax.single_path.latency import Table, Times

_BATCH = flags.DEFINE_integer("batch", 1, "Images a call", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "Where the table goes, a .json file")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time given to the calls", lower_bound=0.0)

COPIES = 4  # of a block in one program, so that calling it does not count
STEPS = 4  # numbers of heads, and of FFN units, that are measured
MIN_TURNS = 5  # even where one turn takes longer than the time given
IMAGENET = 1000  # classes where neither config nor variant says

Call = Callable[[], Any]  # of a compiled program


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 2 after a message on stderr."""
    logging.set_verbosity(logging.WARNING)
    # Imported late: mistyped flags and --help do not wait for it.
    from spvit_jax.pipeline import USER_ERRORS

    try:
        return _measure(from_config_dict(CONFIG.value))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure(config: Config) -> int:
    """Measures, writes and prints; the exit code."""
    from spvit_jax import pretrained
    from spvit_jax.models import VARIANTS
    from spvit_jax.progress import Console
    from spvit_jax.single_path.space import Space

    known: Any = VARIANTS.get(config.model.variant)
    spec: Any = pretrained.dense_spec(config, known.classes if known else IMAGENET)
    Space(spec.blocks, config.search.ops, config.search.axes)  # SpaceError before any work
    path = _output(config, spec)
    console, batch = Console(), _BATCH.value or 1
    dtype = pretrained.options(config, spec)["dtype"]
    table = measured(spec, config.search.ops, batch, _SECONDS.value or 0.0, console, dtype)
    table.save(path)
    console.say(f"\n{summary(table, spec, config.search.ops)}\n\nbudget.latency={path}:SHARE")
    return 0


def _output(config: Config, spec: Any) -> Path:
    """Where the table goes; its folder is there.

    Raises:
      ConfigError: it is not, or not to be written to.
    """
    import jax

    kind = re.sub(r"\W+", "_", jax.local_devices()[0].device_kind).lower()
    model = config.model.variant or type(spec).__name__.lower()
    path = Path(_OUTPUT.value or f"{model}.{kind}.batch{_BATCH.value}.json")
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ConfigError(
            f"--output={path} cannot be written ({error.strerror}); give a file in a folder you own"
        ) from error
    return path


class Part(NamedTuple):
    """A block with little in it, whose time is a point of the table."""

    geometry: "Geometry"
    op: str
    heads: int
    units: int

    @classmethod
    def of(cls, geometry: "Geometry", op: str, heads: int = 0, units: int = 0) -> "Part":
        """Makes the part; windows are attention's alone, so that others do not differ by them."""
        if op != "msa":
            geometry = dataclasses.replace(geometry, window=0, shift=0)
        return cls(geometry, op, heads, units)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is measured of blocks of one geometry, as in ``Times``."""

    ops: dict[str, Part]
    heads: dict[int, Part]
    ffn: dict[int, Part]

    @classmethod
    def of(cls, geometry: "Geometry", ops: tuple[str, ...]) -> "Parts":
        """Each operation, some numbers of heads, and some of FFN units."""
        return cls(
            {op: Part.of(geometry, op) for op in ops if op != "msa"},
            {n: Part.of(geometry, "msa", heads=n) for n in steps(1, geometry.heads)},
            {n: Part.of(geometry, "skip", units=n) for n in steps(0, geometry.hidden)},
        )

    def __iter__(self):
        for parts in (self.ops, self.heads, self.ffn):
            yield from parts.values()

    def times(self, found: dict[Part, float]) -> "Times":
        """The same with the milliseconds of each part."""
        from spvit_jax.single_path.latency import Times

        return Times(
            {op: found[part] for op, part in self.ops.items()},
            {n: found[part] for n, part in self.heads.items()},
            {n: found[part] for n, part in self.ffn.items()},
        )


def steps(least: int, most: int) -> list[int]:
    """Numbers from ``least`` to ``most``, at even distances."""
    count = STEPS if least else STEPS + 1
    return sorted({round(least + (most - least) * i / (count - 1)) for i in range(count)})


def measured(
    spec: Any, ops: tuple[str, ...], batch: int, seconds: float, console: "Console", dtype: Any
) -> "Table":
    """Measures the table of a dense model on this process's first device.

    Args:
      spec: the dense model's.
      ops: what a search may choose from.
      batch: images per call.
      seconds: time given to all calls; at least five turns are taken however long they last.
      console: shows how far it is.
      dtype: of the computation; None: float32.
    """
    import jax

    from spvit_jax import workdir
    from spvit_jax.convert import forms
    from spvit_jax.single_path.architecture import Architecture
    from spvit_jax.single_path.latency import Table, described

    by_block = [Parts.of(geometry, ops) for geometry in spec.blocks]
    parts = list(dict.fromkeys(part for parts in by_block for part in parts))
    empty = Architecture(("skip",) * len(by_block), (0,) * len(by_block))
    whole = [
        forms.build(spec, "dense", dtype=dtype),
        forms.build(spec, "deploy", empty, dtype=dtype),
    ]
    calls = []
    with console.bar(len(whole) + len(parts), 0, "compile") as bar:
        for make in (
            *(partial(compiled, model, batch) for model in whole),
            *(partial(_stack, block, part, batch, dtype) for block, part in zip(_blocks(spec, parts, dtype), parts, strict=True)),
        ):
            calls.append(make())
            bar.update()
    times = alternate(calls, seconds, console)
