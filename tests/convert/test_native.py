import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from spvit_jax.convert import CheckpointError, files, forms, load_model, native, save_model
from spvit_jax.models import RegNetSpec, SwinSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.supernet import supernet

SPEC = ViTSpec(width=24, depth=5, heads=3, hidden=12, patch_size=4, image_size=16, classes=7)
ARCHITECTURE = Architecture(
    ("skip", "conv1x1", "conv3x3", "msa", "norm_skip"), ((), (3,), (0, 5, 11), 4, 12), "tiny"
)


@pytest.fixture(scope="module")
def models():
    dense = ViT(SPEC, rngs=nnx.Rngs(0))
    searched = supernet(dense)
    shared = prune(searched, ARCHITECTURE)
    folded = fold(shared)
    models = dense, searched, shared, folded, fold(folded, batch_norm=True)
    return dict(zip(forms.FORMS, models, strict=True))


def call(model, form):
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    gates = (decide(initial_logits(SPEC.blocks)),) if form == "supernet" else ()
    return model(images, *gates)


@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_comes_back_as_it_was(models, form, tmp_path):
    path, model = tmp_path / "m.safetensors", models[form]
    save_model(path, model, form, ARCHITECTURE)
    loaded = load_model(path)
    assert (loaded.form, loaded.architecture) == (form, ARCHITECTURE)
    assert loaded.model.spec == SPEC
    ours, theirs = forms.variables(loaded.model), forms.variables(model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)
    np.testing.assert_allclose(call(loaded.model, form), call(model, form), atol=1e-6)
    assert list(tmp_path.iterdir()) == [path]


def test_model_options_are_the_readers(models, tmp_path):
    save_model(tmp_path / "m", models["dense"], "dense")
    loaded = load_model(tmp_path / "m", drop_path=0.5, remat=True)
    assert loaded.architecture is None
    assert (loaded.model.remat, loaded.model.blocks[-1].drop_path) == (True, 0.5)


def test_float64_is_kept_under_x64_only(tmp_path):
    with jax.enable_x64(True):
        save_model(tmp_path / "m", ViT(SPEC, rngs=nnx.Rngs(0)), "dense")
        assert load_model(tmp_path / "m").model.norm.scale.dtype == np.float64
    assert load_model(tmp_path / "m").model.norm.scale.dtype == np.float32


def test_a_model_of_another_form_is_not_written(models, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_text("before")
    other = Architecture(("msa",) * 5, (1,) * 5)
    wrong = [("shared", None), ("shared", other), ("folded", ARCHITECTURE), ("small", None)]
    for form, architecture in wrong:
        with pytest.raises(ValueError, match="form"):
            save_model(path, models["shared"], form, architecture)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(models, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_text("before")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(path, models["dense"], "dense")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "spec",
    [
        SwinSpec(16, (2, 2), (2, 4), (8, 9), image_size=56, classes=7),
        RegNetSpec((16, 24), (1, 2), 8, classes=7),
    ],
)
def test_specs_with_tuples_come_back_equal(random_model, assert_same, tmp_path, spec):
    path, model = tmp_path / "m.safetensors", random_model(spec, "dense")
    save_model(path, model, "dense")
    loaded = load_model(path)
    assert loaded.model.spec == spec == native.load_spec(path)
    assert hash(loaded.model.spec) == hash(spec)
    assert_same(forms.variables(loaded.model), forms.variables(model))


def test_a_pruned_swin_comes_back(random_model, assert_same, tmp_path):
    spec = SwinSpec(16, (2, 2), (2, 4), (8, 9), image_size=56, classes=7)
    architecture = Architecture(("msa", "conv3x3", "skip", "conv1x1"), (1, (0, 5), 9, 3))
    for form in ("shared", "folded", "deploy"):
        model = random_model(spec, form, architecture)
        save_model(tmp_path / "m", model, form, architecture)
        loaded = load_model(tmp_path / "m")
        assert (loaded.form, loaded.architecture, loaded.model.spec) == (form, architecture, spec)
        assert_same(forms.variables(loaded.model), forms.variables(model))


def test_files_from_before_a_field_was_there(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, models["dense"], "dense")

    def older(header):
        del header["spec"]["class_token"], header["spec"]["pool"]

    rewrite(path, older)
    assert load_model(path).model.spec == native.load_spec(path) == SPEC


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="missing, damaged"):
        load_model(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="missing, damaged"):
        load_model(path)
    assert not native.is_native(path)
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="convert it first"):
        load_model(path)


def test_truncated_file(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, models["dense"], "dense")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


def rewrite(path, change_header=None, change_arrays=None):
    with safetensors.safe_open(path, "np") as file:
        header = json.loads(file.metadata()[native.HEADER])
    arrays = safetensors.numpy.load_file(path)
    if change_header:
        change_header(header)
    if change_arrays:
        change_arrays(arrays)
    safetensors.numpy.save_file(arrays, path, {native.HEADER: json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(version=99), "format version 99, this package reads 1"),
        (lambda h: h.update(form="tiny"), "form must be one of"),
        (lambda h: h.pop("spec"), "KeyError: 'spec'"),
        (lambda h: h["spec"].update(type="Swin"), "KeyError: 'Swin'"),
        (lambda h: h["spec"].update(colour="red"), "colour"),
        (lambda h: h["spec"].update(width="wide"), "TypeError"),
        (lambda h: h.update(architecture=None), "needs its architecture"),
        (lambda h: h["architecture"]["ops"].pop(), "ops must name 5 blocks"),
        (lambda h: h["architecture"]["ops"].__setitem__(1, "conv3x3"), "wrong shape|unexpected"),
        (lambda h: h["spec"].update(classes=9), r"wrong shape head\.kernel.*\[24, 7\].*\[24, 9\]"),
    ],
)
def test_headers_that_lie(models, tmp_path, change, said):
    path = tmp_path / "m.safetensors"
    save_model(path, models["folded"], "folded", ARCHITECTURE)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=said) as error:
        load_model(path)
    assert str(error.value).count(str(path)) == 1


def test_arrays_that_do_not_fit_are_all_named(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, models["dense"], "dense")

    def change(arrays):
        arrays["new"] = arrays.pop("norm.scale")
        arrays["head.bias"] = np.zeros(3, np.float32)

    rewrite(path, change_arrays=change)
    with pytest.raises(CheckpointError) as error:
        load_model(path)
    for part in (
        "in 3 places",
        "missing norm.scale [24]",
        "unexpected new",
        "wrong shape head.bias",
    ):
        assert part in str(error.value)


ABOUT = native.About(("cat", "hund", "猫"), (0.1, 0.2, 0.3), (0.4, 0.5, 1.0), 0.875)


@pytest.mark.parametrize("about", [ABOUT, native.About(), native.About(crop_ratio=1.0)])
def test_what_it_was_trained_on_is_kept(models, tmp_path, about):
    path = tmp_path / "m.safetensors"
    save_model(path, models["folded"], "folded", ARCHITECTURE, about=about)
    assert native.read_about(path) == about
    model, form, found = load_model(path)
    assert (model.spec, form, found) == (SPEC, "folded", ARCHITECTURE)


def test_a_file_that_does_not_say_what_it_was_trained_on(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, models["dense"], "dense")
    with safetensors.safe_open(path, "np") as file:
        assert "about" not in json.loads(file.metadata()[native.HEADER])  # as files always were
    assert native.read_about(path) == native.About()
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="missing, damaged"):
        native.read_about(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("class_names", ("a", 1), "tuple of strings"),
        ("class_names", "cat", "tuple of strings"),
        ("class_names", tuple("abcdefgh"), "8 names, the model 7 classes"),
        ("mean", (0.1, 0.2), "three numbers"),
        ("mean", (0.1, 0.2, True), "three numbers"),
        ("mean", (0.1, 0.2, float("nan")), "three numbers"),
        ("mean", (), "go together"),
        ("std", (0.1, 0.2, 0.0), "above 0"),
        ("crop_ratio", 0.0, "crop_ratio must be in"),
        ("crop_ratio", "half", "crop_ratio must be in"),
        ("colour", "red", "colour"),
    ],
)
def test_what_no_model_was_trained_on(models, tmp_path, field, value, said):
    path = tmp_path / "m.safetensors"
    with pytest.raises((ValueError, TypeError), match=said):
        about = dataclasses.replace(ABOUT, **{field: value})
        save_model(path, models["dense"], "dense", about=about)
    assert not path.exists()
    save_model(path, models["dense"], "dense", about=ABOUT)
    rewrite(path, lambda h: h["about"].update({field: value}))
    with pytest.raises(CheckpointError, match=said) as error:
        native.read_about(path)
    assert str(error.value).count(str(path)) == 1
    assert load_model(path).form == "dense"  # which does not need it
