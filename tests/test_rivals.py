"""The benchmark of rivals: cells are made once, and its table shows them."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "rivals.py"


def test_makes_the_cells_that_are_missing_and_prints_the_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind, shape in (("images-idx3", (20, 28, 28)), ("labels-idx1", (20,))):
        header = struct.pack(f">4B{len(shape)}i", 0, 0, 8, len(shape), *shape)
        data = rng.integers(0, 10, shape).astype(np.uint8).tobytes()
        for split in ("train", "t10k"):  # of the first, the names of classes are asked
            (tmp_path / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + data))
    options = [f"--workdir={tmp_path}/cells", f"--test=idx:{tmp_path}", "--epochs=0", "--seeds=0"]
    options += ["--contestants=width,merging", "--budgets=0.8,0.6,0.2"]

    def made() -> str:
        command = [sys.executable, str(SCRIPT), *options]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first, file = made(), tmp_path / "cells/cells-published/width-0.6-0-0.json"
    cell = json.loads(file.read_text())
    assert cell["images"] == 20 and 0.55 < cell["macs"] / 16_658_560 <= 0.6
    assert [row.split()[0] for row in first.splitlines()[-2:]] == ["width", "merging"]
    assert "merging alone does not reach 20%" in first
    file.write_text(json.dumps(cell | {"top1": 0.125}))
    assert "12.50 ±" in made().splitlines()[-2]
