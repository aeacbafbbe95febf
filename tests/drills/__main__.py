"""Kills, damages and bad values, as many as you like, with a seed:

    python -m tests.drills --kills 100 --damages 200 --values 1000 --seed 0

prints what came of them and ends with 1 where anything went wrong. Counts so far stand behind the
bar. Two busy cores take 40 s for 1,000 values, 10 s for a damage and 10 to 40 for a kill.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.drills import tasks


def alone(work, *arguments):
    """Calls ``work`` in a process of its own, which may start JAX."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def show(name, counts: Counter, wrong, more=""):
    print(f"\n{name}: {', '.join(f'{what} {number}' for what, number in sorted(counts.items()))}")
    if more:
        print(more)
    for text in wrong:
        print(f"  {text}")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser("python -m tests.drills", description=__doc__)
    for name in ("kills", "damages", "values", "seed"):
        parser.add_argument(f"--{name}", type=int, default=0)
    options = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spvit_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "drills"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    begin, wrongs = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="spvit_drills_") as folder:
        model = Path(folder, "dense.safetensors")
        alone(tasks.make, model)
        for name in ("values", "damages"):
            if count := getattr(options, name):
                into = Path(folder, name)
                counts, wrong = alone(tasks.in_process, name, model, into, count, options.seed)
                show(f"{count} {name}", counts, wrong)
                wrongs += len(wrong)
        if options.kills:
            into = Path(folder, "kills")
            counts, wrong, more = alone(tasks.killed, model, into, options.kills, options.seed)
            show(f"{options.kills} kills", counts, wrong, more)
            wrongs += len(wrong)
    print(f"\n{wrongs} went wrong, in {time.monotonic() - begin:.0f} s, seed {options.seed}")
    return wrongs > 0


if __name__ == "__main__":
    sys.exit(main())
