"""LiteRT files against the models they were written from, in its interpreter."""

import json

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spvit_jax.convert import About, save
from spvit_jax.export import export
from spvit_jax.export.outputs import named_outputs
from spvit_jax.measure import __main__ as measuring
from spvit_jax.sizes import sides

pytest.importorskip("litert_converter")
litert = pytest.importorskip("spvit_jax.export.litert")
interpreter = pytest.importorskip("ai_edge_litert.interpreter")

ABOUT = About(("cat", "dog"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.9)


@pytest.mark.parametrize(
    "name", ["vit, merged", "dinov3, merged", "clip, pruned", "siglip", "swin, pruned", "regnet"]
)
def test_litert_computes_what_the_model_does(name, made, tmp_path):
    model, path = made(name), tmp_path / "small.tflite"
    export(model, path, about=ABOUT, batch=2)
    x = (
        np.random.default_rng(0)
        .standard_normal((2, *sides(model.spec.image_size), 3))
        .astype(np.float32)
    )
    found = interpreter.Interpreter(str(path)).get_signature_runner()(images=x)
    expected = nnx.jit(named_outputs)(model, x)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)


def test_weights_of_8_bits_are_near_and_small(made, tmp_path):
    model = made("vit, merged")
    whole = export(model, tmp_path / "whole.tflite", about=ABOUT, pixels="uint8", layout="NCHW")
    small = export(model, tmp_path / "small.int8.tflite", about=ABOUT, pixels="uint8")
    assert small.size < whole.size
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    first = interpreter.Interpreter(str(whole.files[0])).get_signature_runner()
    second = interpreter.Interpreter(str(small.files[0])).get_signature_runner()
    one = first(images=image.transpose(0, 3, 1, 2))["logits"]
    other = second(images=image)["logits"]
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_files_stand_next_to_the_model_in_a_comparison(made, tmp_path, capsys):
    model, small = made("vit, merged"), str(tmp_path / "small.tflite")
    whole, numbers = str(tmp_path / "whole.safetensors"), tmp_path / "numbers.json"
    save(model, whole, about=ABOUT)
    export(model, small, about=ABOUT, batch=2, pixels="uint8", layout="NCHW")
    (tmp_path / "photographs").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3))):
        image = Image.fromarray(pixels.astype(np.uint8))
        image.save(tmp_path / "photographs" / f"{number}.png")
    quick = ["--batch", "3", "--seconds", "0.05", "--json", str(numbers)]
    assert measuring.main([whole, small, "--test", str(tmp_path / "photographs"), *quick]) == 0
    _, second = json.loads(numbers.read_text())["models"]
    assert second["runtime"] == "litert" and second["bytes"] > 0 and second["latency_ms"] > 0
    assert second["cosine"] == pytest.approx(1, abs=1e-5)
    assert "ai_edge_litert 2" in capsys.readouterr().out
    (tmp_path / "cut.tflite").write_bytes(b"no flatbuffer")
    assert measuring.main([str(tmp_path / "cut.tflite"), *quick]) == 2
    assert "LiteRT cannot read it" in capsys.readouterr().err
