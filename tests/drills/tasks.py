"""The drills, each for a process of its own."""

import sys
from pathlib import Path

from tqdm import tqdm

SMALL = Path(__file__).with_name("small.py")


def make(file):
    from tests.drills import small

    small.make(file)


def ticking(bar):
    """What a drill calls after each try: shows the counts so far, and what went wrong at once."""
    told = []

    def tick(counts, wrong):
        for text in wrong[len(told) :]:
            told.append(text)
            bar.write(f"wrong: {text}", file=sys.stderr)
        bar.set_postfix(counts, refresh=False)
        bar.update()

    return tick


def in_process(name, model, folder, count, seed):
    """The drill ``name``, with a bar."""
    from tests.drills import damages, small, values

    drill = {"damages": damages.drill, "values": values.drill}[name]
    folder.mkdir(parents=True)
    with tqdm(total=count, desc=name, mininterval=5) as bar:
        return drill(small.of(model), folder, count, seed, ticking(bar))


def killed(model, folder, count, seed):
    from tests.drills import kills

    folder.mkdir(parents=True)
    command = [f"--config={SMALL}:{model}"]
    with tqdm(total=count, desc="kills", mininterval=5) as bar:
        counts, wrong, waits = kills.drill(command, folder, count, seed, ticking(bar))
    return counts, wrong, kills.said(waits)
