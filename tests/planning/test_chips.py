import json
import subprocess
import sys

import pytest

from spvit_jax.config import ConfigError
from spvit_jax.planning.chips import CHIPS, SLICES, Target


def sizes(name):
    found = []
    for shape in SLICES[name]:
        size = 1
        for side in shape.split("x"):
            size *= int(side)
        found.append(size)
    return found


def test_every_tpu_has_slices_of_different_sizes():
    assert set(SLICES) == {name for name, chip in CHIPS.items() if chip.topology}
    for name in SLICES:
        assert sizes(name) == sorted(set(sizes(name)))


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("tpu", 8, "--chip must be one of v4, v5e, .*; got 'tpu'"),
        ("v5e", 24, "--devices=24: slices of TPU v5e have 1, 4, 8, 16, 32, 64, 128, 256 chips"),
        ("v4", 1, "slices of TPU v4 have 4, 8"),
    ],
)
def test_what_cannot_be_had_is_refused(name, count, message):
    with pytest.raises(ConfigError, match=message):
        Target.of(name, count)


@pytest.mark.parametrize(
    ("name", "count", "title", "hosts"),
    [
        ("v4", 32, "32 × TPU v4 (v4-64)", 8),
        ("v5e", 8, "8 × TPU v5e (v5litepod-8)", 1),
        ("v5e", 64, "64 × TPU v5e (v5litepod-64)", 16),
        ("v5p", 4, "4 × TPU v5p (v5p-8)", 1),
        ("h100", 12, "12 × NVIDIA H100 SXM", 2),
    ],
)
def test_chips_have_names_and_machines(name, count, title, hosts):
    target = Target(CHIPS[name], [None] * count, "", True)
    assert (target.name, target.hosts) == (title, hosts)


def test_without_their_compiler_as_many_cpu_devices_stand_in():
    program = (
        "import json, jax; from spvit_jax.planning.chips import Target;"
        " found = Target.of('a100', 24);"
        " print(json.dumps([len(found.devices), found.devices[0].platform, found.exact]))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(run.stdout) == [24, "cpu", False]
