"""Configurations with a value that cannot be: refused by name before anything is done."""

import dataclasses
import math
import random
import typing
from collections import Counter

from spvit_jax import pipeline
from spvit_jax.config import Config, ConfigError, from_config_dict
from spvit_jax.context import open_context
from spvit_jax.workdir import Workdir
from tests.drills import runs

NEVER = {  # for a field of this type
    int: [None, "x", "", 1.5, math.nan, math.inf, -1, True, [], [1], {}, {"a": 1}, b"1", 1j],
    float: [None, "x", "", math.nan, math.inf, -math.inf, -1.0, -1e-9, True, [], [0.5], {}],
    str: [None, 3, 0.5, True, [], ["x"], {}, b"x"],
    bool: [None, 1, 0, "true", [], 0.0],
    tuple: [None, "x", {}, [None], [[1]], [{}], [True]],
}
STRANGE = {  # of the right type; may be good
    int: [0, 1, 2, 7, 10**6, 10**12, 10**30],
    float: [0.0, 1e-300, 1e-9, 0.5, 1.0, 2.0, 1e9, 1e300],
    str: [
        "",
        "x",
        "\0",
        "é",
        "nowhere/at/all",
        "../..",
        "a" * 5000,
        "x:y:z",
        "gs://",
        "http://[::1",
    ],
    bool: [True, False],
    tuple: [[], [0], [1, 2, 3, 4], [0.0, 0.0, 0.0], ["x"], ["op", "op"], [10**12]],
}


def fields(part, path=()):
    """Every field of a configuration: its path and type."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, (*path, field.name))
        else:
            yield (*path, field.name), typing.get_origin(field.type) or field.type


def judge(values, name, never, folder):
    """What becomes of a configuration: a word, and what was said."""
    try:
        config = from_config_dict(values)
    except ConfigError as error:
        return ("refused" if name in str(error) else "unnamed"), str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    if never:
        return "silent", "accepted"
    try:
        open_context(config, Workdir(folder), runs.Heard(), lambda: False)
    except pipeline.USER_ERRORS as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "may be", "accepted"


def drill(config: Config, folder, count, seed, tick):
    """Tries ``count`` values; a counter of what came of it, and what went wrong."""
    rng = random.Random(seed)
    places = list(fields(config))
    counts, wrong = Counter(), []
    for number in range(count):
        path, kind = rng.choice(places)
        never = bool(number % 3)
        value = rng.choice((NEVER if never else STRANGE)[kind])
        values = dataclasses.asdict(config)
        part = values
        for group in path[:-1]:
            part = part[group]
        part[path[-1]] = value
        work = folder / f"{number}"
        work.mkdir(parents=True)
        found, said = judge(values, path[-1], never, work)
        counts[found] += 1
        if found not in ("refused", "may be"):
            wrong.append(f"{'.'.join(path)}={value!r:.60}: {found}\n    {said[-600:]}")
        tick(counts, wrong)
    return counts, wrong
