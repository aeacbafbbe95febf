"""What the drills have in common: a run in this process, and what it leaves."""

import json
from pathlib import Path

from spvit_jax import pipeline
from spvit_jax.progress import Console
from spvit_jax.state import StateError
from spvit_jax.training.metrics import METRICS_FILE, read_metrics

SAME = ("architecture", "architecture_threshold", "dense", "decided", "pruned", "shortlist")
TIMED = ("step_seconds", "input_wait")


class Heard(Console):
    """A console that keeps what is said."""

    def __init__(self):
        super().__init__(silent=True)
        self.texts = []

    def say(self, text):
        self.texts.append(text)


class Stop:
    """Says stop at the given call, and from then on; None: never."""

    def __init__(self, calls=None):
        self.left = calls

    def __call__(self):
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def attempt(config, folder, calls=None):
    """Runs: "finished", "stopped", "refused" or "traceback", with all that is said."""
    console = Heard()
    try:
        pipeline.run(config, folder, console, Stop(calls))
        kind, text = "finished", ""
    except pipeline.Interrupted as error:
        kind, text = "stopped", str(error)
    except pipeline.USER_ERRORS as error:
        kind, text = "refused", str(error)
    except Exception as error:
        kind, text = "traceback", f"{type(error).__name__}: {error}"
    return kind, "\n".join([*console.texts, text])


def results(folder):
    """Everything of a finished run that two runs of one configuration have alike.

    A file that is damaged is None.
    """
    folder = Path(folder)
    found = {}
    for name in (*(f"{name}.json" for name in SAME), "pruned.safetensors", "scores.json"):
        file = folder / name
        found[name] = file.read_bytes() if file.is_file() else None
    try:
        result = json.loads((folder / "result.json").read_bytes())
        found["result.json"] = {k: v for k, v in result.items() if k != "timings"}
    except (OSError, ValueError):
        found["result.json"] = None
    for file in sorted(folder.glob("**/*")):
        if file.name == METRICS_FILE:
            try:
                rows = read_metrics(file.parent)
            except StateError:
                rows = None
            name = str(file.relative_to(folder))
            found[name] = rows and [{k: v for k, v in r.items() if k not in TIMED} for r in rows]
    return found


def differences(folder, whole):
    """Names of the results that are not the same in both."""
    mine, other = results(folder), results(whole)
    return sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))
