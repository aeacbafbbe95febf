"""Contestants in processes of their own, taking turns, so that a drifting machine hits all alike.

A contestant is ``make() -> (step, facts)``: ``step()`` does one timed piece of work and waits for
it; ``facts`` are numbers known once it is made, such as its compile time.
"""

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Make = Callable[..., tuple[Callable[[], None], dict[str, float]]]


def compare(contestants: dict[str, tuple[Make, tuple]], turns: int, images: int) -> dict[str, Any]:
    """Times ``turns`` alternating steps; every contestant's ratio is to the first, turn by turn.

    Returns:
      For each: images/s and step seconds (medians), peak resident memory in MB, its facts, and
      the ratio of speeds to the first as median and quartiles.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (make, arguments) in contestants.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, make, arguments), daemon=True)
        process.start()
        workers[name] = (ours, process, ours.recv())  # one after the other: compiling is timed
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(turns):
        for name, (pipe, _, _) in workers.items():
            pipe.send("step")
            times[name].append(pipe.recv())
    results = {}
    first = next(iter(times.values()))
    for name, (pipe, process, facts) in workers.items():
        pipe.send("stop")
        seconds = statistics.median(times[name])
        ratios = sorted(a / b for a, b in zip(first, times[name], strict=True))
        results[name] = {
            "images_per_second": images / seconds,
            "seconds": seconds,
            "speed_ratio": statistics.median(ratios),
            "speed_ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "peak_memory_mb": pipe.recv(),
            **facts,
        }
        process.join()
    return results


def _work(pipe: Connection, make: Make, arguments: tuple) -> None:
    step, facts = make(*arguments)
    step()  # warm-up
    pipe.send(facts)
    while pipe.recv() == "step":
        begin = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - begin)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def show(title: str, results: dict[str, Any]) -> None:
    """A table for people, and a JSON line for everything else."""
    print(f"\n{title}")
    print(f"{'':24}{'images/s':>10}{'× first':>9}{'quartiles':>15}{'compile s':>11}{'peak MB':>9}")
    for name, r in results.items():
        low, high = r["speed_ratio_quartiles"]
        compiling = f"{r['compile_seconds']:.1f}" if "compile_seconds" in r else "–"
        print(
            f"{name:24}{r['images_per_second']:10.2f}{r['speed_ratio']:9.2f}"
            f"{low:9.2f}–{high:.2f}{compiling:>11}{r['peak_memory_mb']:9.0f}"
        )
    print(json.dumps({title: results}))
