"""What the parts of a model cost in time on the device that is here: the table of budget.latency.

    python -m spvit_jax.prices --config=configs/deit_s.py --batch=1 --output=table.json
    python -m spvit_jax.main --config=configs/deit_s.py --config.budget.macs=0 \\
        --config.budget.latency=table.json:0.6 --workdir=/tmp/deit_s

Blocks that keep one thing, folded as they are deployed, take turns with the whole dense model: each
operation of search.ops, attention with some numbers of its heads, FFNs with some of their units.
Where search.axes has tokens, all that can follow a merge also with a half and a quarter of the
patches, and merging itself; where it has dims, attention with heads of fewer features: two or three
times as many programs, which want more --seconds. The table is scaled once, so that together they
explain the dense model's time. No weight and no image is needed.

  --config=FILE.py[:VARIANT]  the run; --config.GROUP.FIELD=... as for spvit_jax.main
  --batch=1                   images per call
  --output=TABLE.json         by default named after model, device, dtype and batch
  --seconds=60                time given to all calls; compiling comes on top

Whatever else the machine does disturbs it: measure while it is idle, or give more seconds. Of
processes that JAX spreads over several hosts it knows nothing.

Exit codes: 0; 2 bad input, which the message explains.
"""

import dataclasses
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from spvit_jax.command_line import CONFIG, parse
from spvit_jax.config import Config, ConfigError, from_config_dict
from spvit_jax.remote import is_loop, is_special
from spvit_jax.shell import failed, run

if TYPE_CHECKING:
    from spvit_jax.single_path.latency import Table, Times

_BATCH = flags.DEFINE_integer("batch", 1, "Images per call", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "", "Where the table goes, a .json file")
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Time given to all calls", lower_bound=0.0)
flags.register_validator(
    _SECONDS, lambda s: s <= _DAY, "expected a number of seconds, such as 60, up to a day's"
)
_DAY = 86_400.0
_CLASSES = 1000  # where neither the config nor a variant says; a head takes next to nothing


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 2 or 75 after a message on stderr."""
    logging.set_verbosity(logging.WARNING)
    # Imported late: mistyped flags and --help do not wait for it.
    from spvit_jax.pipeline import USER_ERRORS

    try:
        return _measure(from_config_dict(CONFIG.value))
    except USER_ERRORS as error:
        return failed(error)


def _measure(config: Config) -> int:
    """Measures, writes and prints; the exit code."""
    from spvit_jax import pretrained
    from spvit_jax.models import VARIANTS
    from spvit_jax.planning.parts import measured
    from spvit_jax.progress import Console
    from spvit_jax.single_path.space import Space

    variant: Any = VARIANTS.get(config.model.variant)
    config = dataclasses.replace(config, stage="search")  # whose dense model it is to be
    spec: Any = pretrained.dense_spec(config, variant.classes if variant else _CLASSES)
    axes = config.search.axes
    ops = Space(spec.blocks, config.search.ops, axes).ops  # which refuses what cannot be
    path, console = _path(config), Console()
    dtype = pretrained.options(config, spec)["dtype"]
    table = measured(spec, ops, int(_BATCH.value or 1), _SECONDS.value, dtype, console, axes)
    table.save(path)
    console.say(f"\n{_text(table, spec, ops)}\n\n--config.budget.latency={path}:SHARE")
    return 0


def _path(config: Config) -> str:
    """Where the table goes.

    Raises:
      ConfigError: nothing can be written there.
    """
    import jax

    model, device = config.model, jax.local_devices()[0].device_kind
    words = (model.variant or "model", device, model.dtype, f"batch {_BATCH.value}")
    path = str(_OUTPUT.value or re.sub(r"[^\w.]+", "_", ".".join(words)) + ".json")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or is_special(path) or is_loop(path) or not os.access(folder, os.W_OK):
        raise ConfigError(f"--output={path} cannot be written; give a file in a folder you own")
    return path


def _text(table: "Table", spec: Any, ops: tuple[str, ...]) -> str:
    """What a person reads: a row per kind of block, and what no search can save."""
    from spvit_jax.single_path.latency import prices
    from spvit_jax.text import aligned

    others, kinds = ops[:-1], list(map(str, table.blocks))
    merging = ("merging",) if any(times.merge for times in table.blocks) else ()
    narrower = ("per half of one",) if table.narrower else ()
    attention = ("attention", "per head", *narrower)
    rows = [("blocks", *others, *attention, "FFN", "per 100 units", *merging)]

    def half(times: "Times", geometry: Any) -> float:
        fewer = dict.fromkeys(("keys", "values"), geometry.head_dim // 2)
        less = times.saved(dataclasses.replace(geometry, **fewer)) / geometry.heads
        return max(times.head - less, 0.0)

    def add(name: str, times: "Times", geometry: Any) -> None:
        values = [times.ops.get(op) for op in others]
        values += [times.heads[max(times.heads)], times.head]
        values += [half(times, geometry) for _ in narrower]
        values += [times.ffn[max(times.ffn)], 100 * times.unit]
        values += [times.merge.get("msa") for _ in merging]
        rows.append((name, *("–" if value is None else f"{value:.3f}" for value in values)))

    for kind in dict.fromkeys(kinds):
        alike = [i for i, other in enumerate(kinds) if other == kind]
        times, geometry = table.blocks[alike[0]], spec.blocks[alike[0]]
        add(" ".join(map(str, alike)), times, geometry)
        for tokens, fewer in times.shorter.items():
            add(f"with {tokens} tokens", fewer, geometry)
    base, dense = prices(table, spec, ops).base, table.dense
    return (
        f"{aligned(rows)}\n\nMilliseconds per call. The dense model takes"
        f" {dense:.2f}; {base / dense:.0%} of that are left with the cheapest of everything."
    )


def command() -> None:
    """Runs as a program."""
    flags_parser = partial(parse, help_text=__doc__, needed=(CONFIG,))
    run(partial(app.run, main, flags_parser=flags_parser))


if __name__ == "__main__":
    command()
