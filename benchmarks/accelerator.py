"""Dense, searched and folded models against timm's in PyTorch, on the accelerator at hand.

    python benchmarks/accelerator.py [--models deit_small_patch16_224,deit_base_patch16_224]
        [--batches 64,256] [--turns 8] [--minutes 5] [--axes op,heads,ffn] [--json FILE] [--tiny]

Runs from a checkout with jax, flax, optax, numpy and safetensors; PyTorch's cells need torch and
timm, the latency table needs tqdm. Everything is in bfloat16, training with float32 weights; the
weights are random. A training step is forward, backward and AdamW, from uint8 pixels; "folded" is
the published architecture. PyTorch's are compiled whole by torch.compile, whose cache may hold them
from the last run; JAX's cache is off. Peak memory is what XLA plans for a program, and what
PyTorch's tensors take.

Contestants take turns and ratios are taken turn by turn: medians and quartiles. Each model and
batch has two processes, for JAX and for PyTorch. All of JAX's contestants share one, since its
memory pool grows to the largest and is not given back: one each would need the sum of them all on
the card. PyTorch is in another because neither frees what the other asks for; JAX takes memory as
it goes (XLA_PYTHON_CLIENT_PREALLOCATE=false). Only one process has work at a time while speed is
measured. Compiling comes before that, several groups side by side where there are cores for it, so
compile times are those of a busy host.

What fails (out of memory, say) leaves an empty cell with its reason, and so does what there is no
time for: after ``--minutes`` the script ends.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package need not be installed

import jax_side  # noqa: E402
import torch_side  # noqa: E402
from sides import NO_TIME, Failed, Side  # noqa: E402

TURN = 0.2  # seconds at least, where a step is shorter: steps are queued, and their end awaited
CORES = 16  # for each group that compiles at the same time: its programs keep as many busy
COMPILING = 0.7  # at most this share of the time that is left
STARTING = 90  # seconds for a framework to name the device
Row = dict[str, Any]


class Group:
    """A model at a batch size: a process for each framework, and a row for every contestant."""

    def __init__(self, model: str, batch: int):
        self.title = f"{model}, batch {batch}"
        self.model, self.batch = model, batch
        self.rows: dict[str, Row] = {}
        self._sides: dict[Side, tuple[str, ...]] = {}
        self._racing: dict[str, Side] = {}

    def enter(self, side: Side, names: tuple[str, ...]) -> None:
        """Adds the contestants that ``side`` has begun to prepare."""
        self._sides[side] = names
        self._racing |= dict.fromkeys(names, side)
        self.rows |= {name: {} for name in names}

    def fail(self, names: Iterable[str], why: str) -> None:
        """Takes contestants out of the race; what was measured of them stays."""
        for name in names:
            self.rows.setdefault(name, {})["failed"] = why
            self._racing.pop(name, None)

    def compiled(self, until: float) -> None:
        """Waits until all have compiled what they could."""
        for side, names in self._sides.items():
            try:
                for name, why in side.hear(until).items():
                    self.fail([name], why)
            except Failed as error:
                self.fail(names, str(error))

    def run(self, turns: int, until: float, end: float) -> None:
        """Begins every contestant, lets them take turns until ``until``, and fills the rows.

        What is not done by ``end`` is given up.
        """
        counts: dict[str, int] = {}
        for name in list(self._racing):
            facts = self._ask(name, 0, end)
            seconds = None if facts is None else self._ask(name, 1, end)
            if seconds is not None:
                self.rows[name] |= facts
                counts[name] = max(round(TURN / seconds), 1)
        taken: list[Row] = []
        while len(taken) < turns and self._racing and time.monotonic() < until:
            turn = {name: self._ask(name, counts[name], end) for name in list(self._racing)}
            taken.append({name: s / counts[name] for name, s in turn.items() if s is not None})
        for name in counts:
            self.rows[name] = self.speed(name, taken) | self.rows[name]

    def _ask(self, name: str, count: int, until: float) -> Any:
        """A contestant's answer; None where it fails, and then it takes no more turns."""
        side = self._racing.get(name)
        if side is None:
            return None
        try:
            return side.ask(name, count, until)
        except Failed as error:
            along = [other for other, s in self._racing.items() if s is side and side.ended]
            self.fail({name, *along}, str(error))
            return None

    def speed(self, name: str, taken: list[dict[str, float]]) -> Row:
        """Medians over the turns, and ratios of speeds to two others turn by turn."""
        seconds = [turn[name] for turn in taken if name in turn]
        if not seconds:
            return {"failed": NO_TIME}
        median = statistics.median(seconds)
        row: Row = {"seconds": median, "images_per_second": self.batch / median}
        row["turns"] = len(seconds)
        for other in ("dense", "PyTorch"):
            first = f"{name.split(', ')[0]}, {other}"
            ratios = sorted(t[first] / t[name] for t in taken if first in t and name in t)
            if ratios:
                quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
                row[f"ratio_to_{other}"] = [quartiles[0], statistics.median(ratios), quartiles[1]]
        return row

    def close(self) -> None:
        """Ends the processes."""
        for side in self._sides:
            side.close()


def main(arguments: list[str] | None = None) -> None:
    """Runs everything there is time for, and prints it."""
    options = _options(arguments)
    end = time.monotonic() + 60 * options.minutes
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    host = introduce()
    unknown = sorted(set(options.models) - set(host["models"]))
    if unknown:
        sys.exit(f"--models: {unknown[0]} is none of {', '.join(host['models'])}")
    results: Row = {name: value for name, value in host.items() if name != "models"}
    results |= {"dtype": "bfloat16", "axes": options.axes, "groups": {}}
    print(", ".join(f"{name} {value}" for name, value in results.items() if name != "groups"))
    if host["platform"] == "cpu" and not options.tiny:
        print("JAX sees no accelerator: this is the CPU's speed, and may not end in time")
    for group in groups(options, host, end):
        results["groups"][group.title] = group.rows
        show(group)
    results["curve"] = curve_lines(options, end)
    results["latency"] = prediction_lines(options, end)
    print(json.dumps(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = lambda text: tuple(text.split(","))  # noqa: E731
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--models", type=words)
    parser.add_argument("--batches", type=numbers)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--axes", type=words, default=("op", "heads", "ffn"), help="of the search")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small and on any machine, for tests")
    options = parser.parse_args(arguments)
    usual = ("deit_small_patch16_224", "deit_base_patch16_224")
    options.models = options.models or ((jax_side.TINY,) if options.tiny else usual)
    options.batches = options.batches or ((2,) if options.tiny else (64, 256))
    return options


def introduce() -> Row:
    """Names the device and the libraries; "no torch" says why PyTorch takes no part.

    Raises:
      SystemExit: JAX does not start.
    """
    ours = Side(jax_side.introduce)
    try:
        host = ours.hear(time.monotonic() + STARTING)
    except Failed as error:
        sys.exit(f"JAX does not start: {error}")
    finally:
        ours.close()
    theirs = Side(torch_side.introduce, host["platform"])
    try:
        return host | theirs.hear(time.monotonic() + STARTING)
    except Failed as error:
        return host | {"no torch": str(error)}
    finally:
        theirs.close()


def groups(options: argparse.Namespace, host: Row, end: float) -> Iterator[Group]:
    """Every model at every batch size, run while there is time; small batches come first."""
    waiting = [Group(model, batch) for batch in options.batches for model in options.models]
    together = max((os.cpu_count() or 1) // CORES, 1)
    while waiting:
        wave, waiting = waiting[:together], waiting[together:]
        left = end - time.monotonic()
        try:
            if left > 0:
                _compile(wave, options, host, left)
            else:
                for group in wave:
                    group.fail(jax_side.NAMES + torch_side.NAMES, NO_TIME)
            for i, group in enumerate(wave):
                now = time.monotonic()
                group.run(options.turns, now + (end - now) / (len(wave) - i), end)
                group.close()
                yield group
        finally:
            for group in wave:
                group.close()


def _compile(wave: list[Group], options: argparse.Namespace, host: Row, left: float) -> None:
    """Compiles groups at the same time, in a part of the seconds ``left``."""
    until = time.monotonic() + COMPILING * left
    for group in wave:
        start(group, options, host, COMPILING * left / 2)
    for group in wave:
        group.compiled(until)


def start(group: Group, options: argparse.Namespace, host: Row, seconds: float) -> None:
    """Starts a group's processes; after ``seconds`` they begin no other program."""
    ours = Side(jax_side.prepare, group.model, group.batch, options.axes, seconds)
    group.enter(ours, jax_side.NAMES)
    if "no torch" in host:
        group.fail(torch_side.NAMES, host["no torch"])
        return
    sizes, backend = host["models"][group.model], "eager" if options.tiny else "inductor"
    theirs = Side(torch_side.prepare, sizes, group.batch, backend, seconds)
    group.enter(theirs, torch_side.NAMES)


def show(group: Group) -> None:
    """Prints a table, and why cells of it are empty."""
    print(f"\n{group.title}\n{'':20}{'images/s':>10}", end="")
    print(f"{'× dense':>11}{'quartiles':>14}{'× PyTorch':>11}{'quartiles':>14}", end="")
    print(f"{'compile s':>11}{'peak MB':>9}")
    for name, row in group.rows.items():
        print(f"{name:20}{_cell(row, 'images_per_second', 10, 1)}", end="")
        print(_ratio(row, "ratio_to_dense") + _ratio(row, "ratio_to_PyTorch"), end="")
        print(_cell(row, "compile_seconds", 11, 1) + _cell(row, "peak_memory_mb", 9, 0))
    for name, row in group.rows.items():
        if "failed" in row:
            print(f"{name}: {row['failed']}")


def _cell(row: Row, key: str, width: int, digits: int) -> str:
    return f"{row[key]:{width}.{digits}f}" if key in row else f"{'–':>{width}}"


def _ratio(row: Row, key: str) -> str:
    if key not in row:
        return f"{'–':>11}{'':14}"
    low, middle, high = row[key]
    return f"{middle:11.2f}{f'{low:.2f}–{high:.2f}':>14}"


def _heard(end: float, function: Callable, *arguments: Any) -> Row:
    """What a process of its own finds, or why it finds nothing."""
    if time.monotonic() > end:
        return {"failed": NO_TIME}
    side = Side(function, *arguments)
    try:
        return side.hear(end)
    except Failed as error:
        return {"failed": str(error)}
    finally:
        side.close()


def curve_lines(options: argparse.Namespace, end: float) -> Row:
    """Prints how long the largest model takes to be scored, and repaired for each budget."""
    model, images, batch = options.models[-1], *((16, 8) if options.tiny else (256, 64))
    answer = _heard(end, jax_side.curve, model, images, batch)
    print(f"\nscored and repaired without training, {model}, {images} images, float32")
    if "failed" in answer:
        print(answer["failed"])
        return answer
    points = (f"{p['budget']:.0%} {p['seconds']:.1f} s" for p in answer["points"])
    print(f"scores {answer['score_seconds']:.1f} s; repaired at", ", ".join(points))
    return answer


def prediction_lines(options: argparse.Namespace, end: float) -> Row:
    """Prints what a table of times predicts of random architectures, and what they take."""
    model, batch = options.models[0], options.batches[0]
    count, seconds = (2, 0.2) if options.tiny else (4, 10.0)
    answer = _heard(end, jax_side.predict, model, batch, count, seconds)
    print(f"\nlatency, {model}, batch {batch}: shares of the dense model's time")
    if "failed" in answer:
        print(answer["failed"])
    else:
        print(f"{'predicted':>10}{'measured':>10}{'error':>8}  random architecture")
    for row in answer.get("shares", ()):
        error = row["predicted"] / row["measured"] - 1
        print(f"{row['predicted']:10.3f}{row['measured']:10.3f}{error:+8.1%}", end="")
        print(f"  {row['architecture']}")
    return answer


if __name__ == "__main__":
    main()
