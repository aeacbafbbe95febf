"""The README's lines that classify a photograph, run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from spvit_jax.convert import About, save
from spvit_jax.export import export
from spvit_jax.predict import __main__ as predict

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "export.md")


def test_its_lines_for_onnxruntime_say_what_predict_says(made, tmp_path, monkeypatch, capsys):
    blocks = [
        re.findall(r"```python\n(import json.*?)```", p.read_text("utf-8"), re.S) for p in PAGES
    ]
    (lines,) = blocks[0]
    assert blocks == [[lines]] * 2
    code = [line for line in lines.splitlines() if line.strip()]
    assert len([line for line in code if not re.match("(import|from) ", line)]) <= 10
    about = About(tuple("abcdefg"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.8)
    model = made("vit, pruned")
    monkeypatch.chdir(tmp_path)
    export(model, "small.onnx", about=about)
    save(model, "model.safetensors", about=about)
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    coarse = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((61, 43)).save("photo.jpg", quality=95, exif=lying)
    script = [
        lines,
        "print(json.dumps([float(v) for v in logits[0]]))",
        'assert "jax" not in __import__("sys").modules',
    ]
    command = [sys.executable, "-I", "-c", "\n".join(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, logits = done.stdout.splitlines()
    assert predict.main(["model.safetensors", "photo.jpg", "--json", "--top", "7"]) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    assert name == top[0]["name"]
    shares = np.exp(json.loads(logits))
    shares /= shares.sum()
    for one in top:
        assert abs(shares[one["class"]] - one["probability"]) < 2e-3
