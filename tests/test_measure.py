import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from PIL import Image

from spvit_jax.convert import About, Facts, about_of, load, save
from spvit_jax.export import export, photographs
from spvit_jax.export.export import macs
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import onnx_session
from spvit_jax.measure import Programs, Timing, __main__, measure
from spvit_jax.measure import turns as module
from spvit_jax.measure.contestants import RUNTIMES, open_contestants, runtimes
from spvit_jax.measure.errors import MeasureError
from spvit_jax.measure.labels import placed
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, form, prune


def small(x):
    return x.mean((1, 2))


def large(x):
    def body(_, m):
        return jnp.tanh(m @ m)

    m = jnp.full((128, 128), x.mean())
    return x.mean((1, 2)) + jax.lax.fori_loop(0, 300, body, m).sum()


def test_more_work_is_slower_in_every_number():
    got = measure({"small": small, "large": large}, 8, 4, 0.2)
    assert list(got) == ["small", "large"]
    assert got["small"].latency_ratio == got["small"].throughput_ratio == 1.0
    assert got["large"].latency_ms > got["small"].latency_ms > 0
    assert got["large"].latency_ratio > 2
    assert got["large"].throughput_ratio < 0.5
    assert got["large"].images_per_second < got["small"].images_per_second


def test_images_are_of_the_height_and_width(monkeypatch):
    seen = set()
    measure({"a": lambda x: seen.add(x.shape) or x.mean()}, (4, 6), 3, 1e-6, 1)
    assert seen == {(1, 4, 6, 1), (3, 4, 6, 1)}


def test_numbers_from_known_times(monkeypatch):
    one = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 9.0], [4.0, 8.0]]) / 1e3
    batch = np.array([[0.1, 0.2], [0.2, 0.1], [0.4, 0.2]])
    monkeypatch.setattr(module, "_times", lambda _m, _i, size, _s: one if size == 1 else batch)
    got = measure({"a": small, "b": small}, 8, 16, 1.0)["b"]
    want = Timing(
        latency_ms=5.0,  # of 1 2 8 9
        latency_iqr_ms=6.5,  # 8.25 - 1.75
        images_per_second=80.0,  # 16 / 0.2
        latency_ratio=2.0,  # of 2, 1/2, 3, 2; the quotient of medians would be 2.5 / 5
        throughput_ratio=2.0,  # of 1/2, 2, 2; the quotient of medians would be 1
        latency_p90_ms=8.7,  # of 1 2 8 9: seven tenths between 8 and 9
        latency_p99_ms=8.97,
    )
    assert dataclasses.asdict(got) == pytest.approx(dataclasses.asdict(want))


def test_models_take_turns_call_by_call(monkeypatch):
    order = []

    def compiled(model, images):
        return lambda x: order.append(model) or x

    monkeypatch.setattr(module, "compiled", compiled)
    measure({"a": "A", "b": "B", "c": "C"}, 4, 2, 1e-6)
    assert order == ["A", "B", "C"] * (len(order) // 3)
    assert len(order) == 2 * 3 * (module._WARM_UP + module._MIN_ROUNDS)


def test_shapes_are_batch_1_then_the_batch_and_compiled_once(monkeypatch):
    traced = []

    def model(x):
        traced.append((x.shape, x.dtype))
        return x

    measure({"a": model}, 6, 5, 0.01)
    assert traced == [((1, 6, 6, 3), jnp.float32), ((5, 6, 6, 3), jnp.float32)]


def test_programs_are_compiled_once(monkeypatch):
    shapes, compiled = [], module.compiled
    monkeypatch.setattr(module, "compiled", lambda m, x: shapes.append(x.shape) or compiled(m, x))
    dense = Programs(jnp.sum)
    for name in ("b", "c"):
        measure({"a": dense, name: jnp.max}, 6, 5, 0.01)
    assert shapes == [(n, 6, 6, 3) for n in (1, 1, 5, 5, 1, 5)]


def test_captured_weights_become_arguments():
    weight = jnp.arange(3.0)
    images = jnp.ones((2, 4, 4, 3))
    call = module.compiled(lambda x: x.sum((1, 2)) * weight, images)
    np.testing.assert_allclose(call(images), jnp.tile(16 * weight, (2, 1)))


def test_time_is_kept():
    start = time.perf_counter()
    measure({"a": small}, 4, 2, 0.3)
    assert 0.6 <= time.perf_counter() - start < 3.0


def test_timing_goes_through_json():
    timing = Timing(1.0, 0.1, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert Timing(**json.loads(json.dumps(dataclasses.asdict(timing)))) == timing


@pytest.mark.parametrize(
    "arguments",
    [
        ({}, 8, 1, 1.0),
        ({"a": small}, 0, 1, 1.0),
        ({"a": small}, 8, 0, 1.0),
        ({"a": small}, 8, 1, 0.0),
    ],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="at least one model|must be above 0"):
        measure(*arguments)


SPEC = ViTSpec(width=16, depth=2, heads=2, hidden=24, patch_size=4, image_size=16, classes=3)
ABOUT = About(("cat", "dog", "eel"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.8)
QUICK = ("--seconds", "0.05", "--batch", "4")


def model_of(seed, **changes):
    """A model whose outputs differ from image to image."""
    model = ViT(dataclasses.replace(SPEC, **changes), rngs=nnx.Rngs(seed))
    noise = np.random.default_rng(seed)
    params = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda a: a + 0.3 * noise.standard_normal(a.shape), params))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dense and a pruned model in several formats, and images with labels and without."""
    folder = tmp_path_factory.mktemp("files")
    dense, other = model_of(0), model_of(1)
    small = prune(dense, Architecture(("conv3x3", "msa"), ((0, 1, 2), tuple(range(24)))))
    save(dense, folder / "dense.safetensors", about=ABOUT)
    save(small, folder / "small.safetensors", about=ABOUT)
    save(other, folder / "other.safetensors", about=ABOUT)
    save(model_of(2, image_size=24), folder / "large.safetensors", about=ABOUT)
    save(model_of(3, classes=0), folder / "headless.safetensors")
    export(dense, folder / "dense.onnx", about=ABOUT)
    export(dense, folder / "raw.onnx", about=ABOUT, pixels="uint8", layout="NHWC")
    export(dense, folder / "dense.stablehlo", about=ABOUT)
    export(small, folder / "small.stablehlo", about=ABOUT, beside=True, layout="NCHW")
    noise = np.random.default_rng(0)
    for number in range(15):
        pixels = noise.integers(0, 256, (3, 5, 3)).repeat(8, 0).repeat(6, 1).astype(np.uint8)
        for place in (f"labelled/{ABOUT.class_names[number % 3]}", "plain"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    return folder


def run(files, *arguments):
    """The command in the folder of the files; its exit code."""
    return __main__.main([*arguments, *QUICK])


@pytest.fixture
def there(files, monkeypatch):
    monkeypatch.chdir(files)
    return files


def expected(file, images):
    """Logits of a model file for decoded images, by the model itself."""
    model, about = load(file), about_of(file)
    model = model if model.architecture is None else fold(model, batch_norm=True)
    return model((images / 255 - np.array(about.mean)) / np.array(about.std))


def test_files_of_all_kinds_stand_next_to_each_other(there, capsys, tmp_path):
    names = ["dense.safetensors", "dense.onnx", "raw.onnx", "dense.stablehlo", "small.stablehlo"]
    figure, numbers = tmp_path / "speed.png", tmp_path / "speed.json"
    options = ["--test", "labelled", "--figure", str(figure), "--json", str(numbers)]
    assert run(there, *names, *options, "--runtime", "onnxruntime") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[2:7]]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == ["JAX", "onnxruntime", "onnxruntime", "JAX", "JAX"]
    assert "images/s at 4" in out and "Tested on 15 images" in out
    assert re.search(r"latency, ms +90 % +99 % +× first", out.splitlines()[0])
    assert "what 90 % and 99 % of the calls took at most" in out
    for library in ("jax", "onnxruntime"):
        assert f"{library} {version(library)}" in out
    assert figure.read_bytes()[:4] == b"\x89PNG"
    found = json.loads(numbers.read_text())
    assert found["test_images"] == 15 and found["batch_size"] == 4 and found["threads"] >= 1
    models = found["models"]
    assert [one["name"] for one in models] == names
    assert models[0]["latency_ratio"] == models[0]["throughput_ratio"] == 1
    assert all(one["latency_ms"] > 0 and one["images_per_second"] > 0 for one in models)
    for row, one in zip(rows, models, strict=True):
        assert 0 < one["latency_ms"] <= one["latency_p90_ms"] <= one["latency_p99_ms"]
        times = [one[f"latency_{name}ms"] for name in ("", "p90_", "p99_")]
        assert [f"{value:.2f}" for value in times] == row[4:7]
    weights = (there / "small.weights.safetensors").stat().st_size
    sizes = [(there / name).stat().st_size for name in names]
    assert [one["bytes"] for one in models] == [*sizes[:4], sizes[4] + weights]
    counted = macs(load("dense.safetensors"))
    assert [one["macs"] for one in models] == [counted, counted, counted, 0, 0]
    source = photographs.open_test("labelled")
    images = np.stack([np.asarray(source[i]["image"].centre(20, 16)) for i in range(15)])
    labels = np.array([source[i]["label"] for i in range(15)])
    for file, where in (("dense.safetensors", slice(0, 4)), ("small.safetensors", slice(4, 5))):
        guesses = np.argmax(expected(file, images), 1)
        right = float(np.mean(guesses == labels))
        assert len(set(guesses.tolist())) == 3 and 0 < right < 1
        assert [one["top-1"] for one in models[where]] == [pytest.approx(right)] * len(
            models[where]
        )


def test_without_labels_outputs_are_compared_with_the_first_ones(there, capsys, tmp_path):
    numbers = tmp_path / "speed.json"
    names = ["dense.safetensors", "dense.onnx", "other.safetensors"]
    options = ["--test", "plain", "--json", str(numbers), "--runtime", "onnxruntime"]
    assert run(there, *names, *options) == 0
    found = [one["cosine"] for one in json.loads(numbers.read_text())["models"]]
    source = photographs.open_test("plain")
    images = np.stack([np.asarray(source[i]["image"].centre(20, 16)) for i in range(15)])
    a, b = (expected(file, images) for file in (names[0], names[2]))
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found == pytest.approx([1, 1, float(cosines.mean())], abs=1e-5)
    assert found[2] < 0.999
    head = capsys.readouterr().out.splitlines()[0]
    assert head.split()[-1] == "cosine"


def test_models_of_other_sizes_get_images_of_their_own(there, capsys):
    assert run(there, "dense.safetensors", "large.safetensors", "--test", "labelled") == 0
    said = capsys.readouterr().out
    assert "its own size: dense.safetensors 16×16, large.safetensors 24×24." in said


def test_checkpoints_that_do_not_say_get_what_a_user_says(there):
    save(load("dense.safetensors"), "bare.safetensors", about=About())
    mine, notes = About((), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 0.5), []
    for name, wanted in {"bare": mine, "dense": ABOUT}.items():
        (found,) = open_contestants(f"{name}.safetensors", ["jax"], 1, Facts(), notes, mine)
        assert found.preprocess.mean == wanted.mean
        assert found.preprocess.resize == (round(16 / wanted.crop_ratio),) * 2
    assert not notes


@pytest.mark.parametrize("wrong", ["", "beside"])
def test_preprocessing_is_that_of_the_file(there, wrong, tmp_path):
    """Beside the file, else its metadata; of others ImageNet's usual, and that is said."""
    path = tmp_path / "a.onnx"
    path.write_bytes((there / "dense.onnx").read_bytes())
    wanted = dataclasses.replace(Preprocess.of(model_of(0), ABOUT, []))
    if wrong:
        wanted = dataclasses.replace(wanted, mean=(0.1, 0.2, 0.3))
        (tmp_path / "a.preprocess.json").write_text(wanted.to_json())
    notes = []
    (found,) = open_contestants(str(path), ["onnxruntime"], 1, Facts(), notes)
    assert found.preprocess == wanted and not notes
    made = onnx.load(path)
    del made.metadata_props[:]
    onnx.save(made, tmp_path / "bare.onnx")
    (found,) = open_contestants(str(tmp_path / "bare.onnx"), ["onnxruntime"], 1, Facts(), notes)
    assert found.preprocess.mean == (0.485, 0.456, 0.406) and found.preprocess.crop == (16, 16)
    assert "ImageNet's usual" in notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize": 0}, "above 0"),
        ({"crop": [16]}, "two whole numbers"),
        ({"crop": [16, 20]}, "gives"),
        ({"resize": [8, 8]}, "more than 8x8"),
        ({"mean": [0.5]}, "go together"),
        ({"std": [1, 1, -1]}, "std above 0"),
        ({"mean": [0.5], "std": [0.5]}, "1 numbers of mean"),
        ({"class_names": [1]}, "tuple of strings"),
        (None, "JSON object"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(change, said, there, tmp_path):
    path = tmp_path / "a.stablehlo"
    path.write_bytes((there / "dense.stablehlo").read_bytes())
    values = json.loads((there / "dense.preprocess.json").read_text())
    text = "[]" if change is None else json.dumps(values | change)
    (tmp_path / "a.preprocess.json").write_text(text)
    with pytest.raises(MeasureError, match=f"a.stablehlo.*{said}.*export the model again"):
        list(open_contestants(str(path), ["jax"], 1, Facts(), []))


def test_runtimes_are_those_asked_for_where_a_file_has_them(monkeypatch):
    monkeypatch.setattr("spvit_jax.measure.contestants._missing", lambda name: [])
    assert runtimes("a.safetensors", []) == ("jax",)
    assert runtimes("hf-hub:a/b", ["torch", "jax"]) == ("jax", "torch")
    assert runtimes("a.onnx", ["torch"]) == ("onnxruntime", "openvino")
    assert runtimes("a.int8.onnx", ["openvino"]) == ("openvino",)
    assert runtimes("a.stablehlo", ["torch"]) == ("jax",)
    monkeypatch.setattr("spvit_jax.measure.contestants._missing", lambda name: [name])
    assert runtimes("a.onnx", []) == ("onnxruntime",)


def test_pytorch_computes_the_same_of_the_folded_model(there, monkeypatch):
    torch = pytest.importorskip("torch")
    spvit_torch = pytest.importorskip("spvit_jax.export.spvit_torch")
    seen, loading = [], spvit_torch.load
    monkeypatch.setattr(
        spvit_torch, "load", lambda path: seen.append(form(load(path))) or loading(path)
    )
    threads = torch.get_num_threads()
    (found,) = open_contestants("small.safetensors", ["torch"], 2, Facts(), [])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    values = found.bind(pixels)()["logits"]
    np.testing.assert_allclose(values, expected("small.safetensors", pixels), atol=1e-4)
    assert seen == ["deploy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.onnx"], "no file at missing.onnx"),
        (["missing.stablehlo"], "no file at missing.stablehlo"),
        (["missing.safetensors"], "no file at missing.safetensors"),
        (["plain/0.png"], "0.png"),
        (["noise.onnx"], r"noise.onnx: ONNX cannot read it: \w.*\w; export"),
        (["noise.stablehlo"], r"noise.stablehlo: JAX cannot read it: \w.*; export"),
        (["fixed.onnx"], r"fixed.onnx takes input \[1, 3, 16, 16\]"),
        (["dense.onnx", "--runtime", "jax"], "--runtime jax: none of these files"),
        (["dense.safetensors", "--test", "nowhere"], "no such folder"),
        (["dense.safetensors", "--json", "nowhere/a.json"], "no such folder"),
        (["dense.safetensors", "--test", "fewer"], "number 1 is 'dog', the images' 'eel'"),
        (["bare.safetensors", "--test", "more"], "3 classes apart, the test images show 4"),
        (["headless.safetensors", "--test", "labelled"], "has no head"),
        (["dense.safetensors", "headless.safetensors", "--test", "plain"], "be compared"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, said, there, capsys):
    for name in ("noise.onnx", "noise.stablehlo"):
        (there / name).write_bytes(b"\x08\x07no program at all")
    made = onnx.load("dense.onnx")
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(made, "fixed.onnx")
    save(load("dense.safetensors"), "bare.safetensors", about=About())
    for folder, classes in {"fewer": ("cat", "eel"), "more": "abcd"}.items():
        for name in classes:
            (there / folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy("plain/0.png", there / folder / name)
    assert run(there, *arguments) == 2
    assert re.search(said, capsys.readouterr().err)


def without(*modules):
    """A ``find_spec`` to which these modules are not installed."""
    find = importlib.util.find_spec
    return lambda name, *more: None if name in modules else find(name, *more)


@pytest.mark.parametrize(
    ("modules", "arguments", "said"),
    [
        (["onnxruntime"], ["dense.onnx"], "onnxruntime is not installed; .*export"),
        (["onnx"], ["dense.onnx"], "onnx is not installed; .*export"),
        (["openvino"], ["dense.onnx", "--runtime", "openvino"], "openvino is not .*openvino"),
        (
            ["openvino", "onnx"],
            ["dense.onnx", "--runtime", "openvino"],
            "onnx, openvino are .*openvino",
        ),
        (["torch"], ["dense.safetensors", "--runtime", "torch"], "torch is not .*torch"),
        (["matplotlib"], ["dense.onnx", "--figure", "a.png"], "--figure needs Matplotlib.*reports"),
    ],
)
def test_what_is_not_installed_is_named_with_what_installs_it(
    modules, arguments, said, there, capsys, monkeypatch
):
    monkeypatch.setattr("importlib.util.find_spec", without(*modules))
    test = ["--test", "labelled"] if "--figure" in arguments else []
    assert run(there, *arguments, *test) == 2
    error = capsys.readouterr().err
    assert re.search(said + r".*\]'$", error.strip()) and "pip install 'spvit_jax[" in error


def test_extras_of_the_runtimes_bring_their_modules():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for runtime in RUNTIMES.values():
        if runtime.extra:
            brought = {re.split(r"[^\w-]", line)[0] for line in extras[runtime.extra]}
            assert {name.replace("_", "-") for name in runtime.modules} <= brought, runtime


def test_other_files_need_neither_matplotlib_nor_onnx(there):
    script = """
import sys
for name in ("matplotlib", "onnx", "onnxruntime", "openvino", "torch", "ai_edge_litert"):
    sys.modules[name] = None  # its import fails
from spvit_jax.measure.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, "dense.safetensors", "dense.stablehlo", *QUICK]
    done = subprocess.run([*command, "--test", "labelled"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dense.stablehlo" in done.stdout


def placed_apart(boxes, bounds, points):
    left, bottom, right, top = bounds
    for box in boxes:
        assert left <= box[0] and bottom <= box[1] and box[2] <= right and box[3] <= top
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in points)
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            beside = one[2] + 3 <= two[0] or two[2] + 3 <= one[0]  # words do not run together
            apart = beside or one[3] <= two[1] or two[3] <= one[1]
            assert apart, (one, two)


@pytest.mark.parametrize("seed", range(4))
def test_names_in_a_figure_lie_on_nothing(seed):
    """Also of points that nearly coincide, on the edge, and of names as long as a third."""
    noise = np.random.default_rng(seed)
    bounds = (40.0, 30.0, 640.0, 430.0)
    spread = noise.uniform((45, 35), (635, 425), (6, 2))
    close = noise.uniform((316, 226), (324, 234), (6, 2))
    points = [tuple(p) for p in (*spread, *close)]
    sizes = [(w, 12.0) for w in noise.uniform(40, 200, 12)]
    boxes = placed(points, sizes, bounds)
    for box, size in zip(boxes, sizes, strict=True):
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(size)
    placed_apart(boxes, bounds, points)


def test_names_in_a_line_do_not_run_together():
    bounds = (0.0, 0.0, 400.0, 60.0)
    points = [(100.0, 30.0), (222.0, 30.0)]
    placed_apart(placed(points, [(50.0, 12.0)] * 2, bounds), bounds, points)
    points = [(100.0, 30.0), (230.0, 30.0), (391.0, 30.0)]
    placed_apart(placed(points, [(50.0, 12.0), (50.0, 12.0), (89.0, 12.0)], bounds), bounds, points)


def test_a_name_is_beside_its_point_where_there_is_room():
    ((left, bottom, right, top),) = placed([(100.0, 100.0)], [(50.0, 12.0)], (0, 0, 300, 300))
    assert 100 < left < 112 and bottom < 100 < top
    ((left, _, right, _),) = placed([(290.0, 100.0)], [(50.0, 12.0)], (0, 0, 300, 300))
    assert 278 < right < 290


def test_names_of_a_drawn_figure_lie_apart(there, monkeypatch, tmp_path):
    pages = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda page, path, **options: pages.append(page) or Path(path).write_bytes(b""),
    )
    names = ["dense.safetensors", "dense.onnx", "raw.onnx", "dense.stablehlo", "small.stablehlo"]
    figure = ["--test", "labelled", "--figure", str(tmp_path / "a.png")]
    assert run(there, *names, *figure, "--runtime", "onnxruntime") == 0
    (page,) = pages
    page.draw_without_rendering()
    (axes,) = page.axes
    assert [text.get_text() for text in axes.texts] == names
    boxes = [tuple(text.get_window_extent().extents) for text in axes.texts]
    points = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines]
    placed_apart(boxes, tuple(page.bbox.extents), points)
    (legend,) = page.legends
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_a_figure_replaces_no_pipe(there, tmp_path, capsys):
    os.mkfifo(tmp_path / "a.pipe")
    figure = ["--figure", str(tmp_path / "a.pipe")]
    assert run(there, "dense.onnx", "--test", "labelled", *figure) == 2
    assert "a.pipe is a pipe or a device, expected a file" in capsys.readouterr().err


def test_what_is_measured_is_not_written_into_what_is_no_file(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("spvit_jax.measure.comparison.compare", None)  # said before measuring
    (tmp_path / "loop.json").symlink_to("loop.json")
    assert run(there, "dense.onnx", "--json", str(tmp_path / "loop.json")) == 2
    assert "loop.json is a link that leads back to itself" in capsys.readouterr().err


def test_a_figure_needs_test_images(there, capsys):
    with pytest.raises(SystemExit):
        run(there, "dense.onnx", "--figure", "a.png")
    assert "needs --test" in capsys.readouterr().err


def test_threads_are_those_of_every_runtime(there, capsys, monkeypatch):
    monkeypatch.setenv("NPROC", "7")
    sessions = []

    def session(path, threads):
        sessions.append(threads)
        return onnx_session(path, threads)

    monkeypatch.setattr("spvit_jax.measure.contestants.onnx_session", session)
    assert run(there, "dense.safetensors", "dense.onnx", "--threads", "1") == 0
    assert ", 1 thread;" in capsys.readouterr().out
    assert sessions == [1] and os.environ["NPROC"] == "1"
