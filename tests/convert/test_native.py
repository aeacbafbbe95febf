import dataclasses
import json
import os
import re
import threading

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from spvit_jax.convert import CheckpointError, files, forms, load, native, save, save_torch
from spvit_jax.models import MODELS, RegNetSpec, SwinSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.prune import FORMS, fold, form, prune
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet
from spvit_jax.sizes import sides

SPEC = ViTSpec(width=24, depth=5, heads=3, hidden=12, patch_size=4, image_size=16, classes=7)
SWIN = SwinSpec(16, (2, 2), (2, 4), (8, 9), image_size=(56, 112), classes=7)
ARCHITECTURES = {
    SPEC: Architecture(
        ("skip", "conv1x1", "conv3x3", "msa", "norm_skip"),
        ((), (3,), (0, 5, 11), 4, 12),
        "tiny",
        heads=(0, (), 0, (0, 2), 0),
    ),
    SWIN: Architecture(
        ("msa", "conv3x3", "msa", "conv1x1"), (1, (0, 5), 9, 3), heads=(1, 0, (1, 3), ())
    ),
}


def every_form(spec, **options):
    """A model in each of its forms, with head logits that a temperature makes a difference to."""
    dense = MODELS[type(spec)](spec, rngs=nnx.Rngs(0))
    searched = supernet(dense, **options)
    for i, block in enumerate(searched.blocks):
        logits = block.mixer.head_logits
        logits[...] = jax.random.normal(jax.random.key(i), logits.shape)
    shared = prune(searched, ARCHITECTURES[spec])
    folded = fold(shared)
    models = dense, searched, shared, folded, fold(folded, batch_norm=True)
    return dict(zip(FORMS, models, strict=True))


@pytest.fixture(scope="module")
def models():
    return every_form(SPEC)


@pytest.fixture(scope="module")
def swins():
    return every_form(SWIN)


def call(model):
    images = jax.random.normal(jax.random.key(0), (2, *sides(model.spec.image_size), 3))
    if form(model) != "supernet":
        return model(images)
    space = Space(model.spec.blocks, model.blocks[0].mixer.ops)
    return model(images, decide(space, initial_logits(space)))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("family", ["models", "swins"])
def test_every_form_comes_back_as_it_was(request, assert_same, tmp_path, family, name):
    path, model = tmp_path / "m.safetensors", request.getfixturevalue(family)[name]
    save(model, path)
    loaded = load(str(path))
    assert form(loaded) == form(model) == name
    assert loaded.architecture == model.architecture
    assert (model.architecture is None) == (name in ("dense", "supernet"))
    assert loaded.spec == model.spec
    assert_same(forms.variables(loaded), forms.variables(model))
    np.testing.assert_allclose(call(loaded), call(model), atol=1e-6)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("family", ["models", "swins"])
def test_pruned_files_hold_fewer_heads_than_the_width(request, tmp_path, family):
    model = request.getfixturevalue(family)["shared"]
    save(model, tmp_path / "m.safetensors")
    loaded = load(str(tmp_path / "m.safetensors"))
    kept = dict(enumerate(loaded.architecture.heads))
    assert {i: heads for i, heads in kept.items() if heads} == {
        "models": {3: (0, 2)},
        "swins": {0: kept[0], 2: (1, 3)},  # of the first, the strongest
    }[family]
    for i, heads in kept.items():
        if heads:
            mixer, dense = loaded.blocks[i].mixer, loaded.spec.blocks[i]
            assert mixer.heads == len(heads) < dense.heads
            rows = len(heads) * dense.head_dim
            assert mixer.v.kernel.shape == (dense.width, rows)
            assert mixer.out.kernel.shape == (rows, dense.width)


def test_a_supernet_keeps_its_operations_temperature_and_decision(tmp_path):
    ops = ("skip", "conv3x3", "msa")
    model = supernet(ViT(SPEC, rngs=nnx.Rngs(0)), ops, temperature=0.5)
    model.architecture = ARCHITECTURES[SPEC]
    save(model, tmp_path / "m.safetensors")
    loaded = load(str(tmp_path / "m.safetensors"))
    assert [block.mixer.ops for block in loaded.blocks] == [ops] * 5
    assert [block.mixer.temperature for block in loaded.blocks] == [0.5] * 5
    assert loaded.architecture == ARCHITECTURES[SPEC]


def version_1(path, model, name, architecture=None, temperature=0.01):
    """Writes a file as the first version of the format had it."""
    arrays = {
        re.sub(r"\.parts\.conv(\dx\d)\.", r".norm\1.", name): np.asarray(value)
        for name, value in forms.variables(model).items()
    }
    spec = {"type": type(model.spec).__name__, **dataclasses.asdict(model.spec)}
    header = {
        "version": 1,
        "spec": spec | {"temperature": temperature},
        "form": name,
        "architecture": architecture and json.loads(architecture.to_json()),
    }
    safetensors.numpy.save_file(arrays, path, {"spvit_jax": json.dumps(header)})


OLD = {  # it had no heads
    SPEC: dataclasses.replace(ARCHITECTURES[SPEC], heads=()),
    SWIN: dataclasses.replace(ARCHITECTURES[SWIN], heads=()),
}


@pytest.mark.parametrize("name", ["supernet", "shared", "folded"])
@pytest.mark.parametrize(("spec", "temperature"), [(SPEC, 0.5), (SWIN, 20.0)], ids=["vit", "swin"])
def test_files_of_the_first_version_still_load(tmp_path, spec, temperature, name):
    searched = every_form(spec, temperature=temperature)["supernet"]
    shared = prune(searched, OLD[spec])
    model = {"supernet": searched, "shared": shared, "folded": fold(shared)}[name]
    version_1(tmp_path / "1.safetensors", model, name, OLD[spec], temperature)
    if name == "supernet":
        with safetensors.safe_open(tmp_path / "1.safetensors", "np") as file:
            assert {"blocks.0.mixer.norm1x1.scale", "blocks.3.mixer.norm3x3.var"} <= {*file.keys()}
    loaded = load(str(tmp_path / "1.safetensors"))
    assert (form(loaded), loaded.architecture) == (name, OLD[spec])
    np.testing.assert_allclose(call(loaded), call(model), atol=1e-6)
    if name == "folded":
        return
    save(loaded, tmp_path / "2.safetensors")  # as the second version
    for path in ("1.safetensors", "2.safetensors"):
        mixers = [block.mixer for block in load(str(tmp_path / path)).blocks]
        found = {mixer.temperature for mixer in mixers if hasattr(mixer, "temperature")}
        assert found == {temperature}


def test_a_dense_file_of_the_first_version_may_remark_on_an_architecture(models, tmp_path):
    version_1(tmp_path / "1.safetensors", models["dense"], "dense", OLD[SPEC])
    loaded = load(str(tmp_path / "1.safetensors"))
    assert (form(loaded), loaded.architecture, loaded.spec) == ("dense", None, SPEC)
    np.testing.assert_array_equal(call(loaded), call(models["dense"]))


def test_model_options_are_the_readers(models, tmp_path):
    save(models["dense"], tmp_path / "m.safetensors")
    loaded = load(str(tmp_path / "m.safetensors"), drop_path=0.5, remat=True)
    assert (loaded.remat, loaded.blocks[-1].drop_path) == (True, 0.5)


def test_links_stay_and_pipes_are_written_into(models, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    real, pipe = folder / "real.safetensors", tmp_path / "pipe"
    link = tmp_path / "link.safetensors"
    real.write_text("the one before")
    link.symlink_to(real)
    save(models["dense"], link)
    assert link.is_symlink() and load(real).spec == SPEC
    assert list(folder.iterdir()) == [real]
    os.mkfifo(pipe)
    came = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save(models["dense"], pipe)
    reader.join(10)
    assert came == [real.read_bytes()] and pipe.is_fifo()


@pytest.mark.parametrize("write", [save, save_torch])
def test_links_that_lead_nowhere_are_refused(models, tmp_path, write):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(FileExistsError, match=r"one\.safetensors is a link that leads back to it"):
        write(models["dense"], one)
    assert one.is_symlink() and other.is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever(models, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="nobody reads this pipe; begin what .*pipe'$"):
        save(models["dense"], pipe)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "y.onnx",
            r"y\.onnx: .* end its name in \.safetensors; .*\.onnx is written by spvit\.export",
        ),
        ("y.int8.onnx", r"\.onnx is written by spvit\.export"),
        ("y.tflite", r"\.tflite is written by spvit\.export"),
        ("y.stablehlo", r"\.stablehlo is written by spvit\.export"),
        (
            "y.pth",
            r"y\.pth: .* end its name in \.safetensors; .*\.pth is written by spvit\.save_torch",
        ),
        ("y.npz", r"y\.npz: a model file's name ends in \.safetensors; end its name in"),
        ("y", r"y: a model file's name ends in \.safetensors; end its name in \.safetensors$"),
        ("y.safetensors.gz", "end its name in"),
        (".safetensors", "end its name in"),
    ],
)
def test_a_file_under_a_wrong_ending_is_not_written(models, tmp_path, name, said):
    with pytest.raises(CheckpointError, match=said):
        save(models["dense"], tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_float64_is_kept_under_x64_only(tmp_path):
    with jax.enable_x64(True):
        save(ViT(SPEC, rngs=nnx.Rngs(0)), tmp_path / "m.safetensors")
        assert load(str(tmp_path / "m.safetensors")).norm.scale.dtype == np.float64
    assert load(str(tmp_path / "m.safetensors")).norm.scale.dtype == np.float32


def test_a_failed_write_leaves_what_was_there(models, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_text("before")

    def fail(*arguments):
        raise OSError(28, "disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full: .*safetensors"):
        save(models["dense"], path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "spec",
    [SWIN, RegNetSpec((16, 24), (1, 2), 8, classes=7)],
)
def test_specs_with_tuples_come_back_equal(random_model, assert_same, tmp_path, spec):
    path, model = tmp_path / "m.safetensors", random_model(spec, "dense")
    save(model, path)
    loaded = load(str(path))
    assert loaded.spec == spec == native.load_spec(path)
    assert hash(loaded.spec) == hash(spec)
    assert_same(forms.variables(loaded), forms.variables(model))


@pytest.mark.parametrize("size", [16, (16, 16), (16, 8)])
def test_a_square_size_is_written_as_one_number(models, tmp_path, size):
    path, spec = tmp_path / "m.safetensors", dataclasses.replace(SPEC, image_size=size)
    save(ViT(spec, rngs=nnx.Rngs(0)), path)
    with safetensors.safe_open(path, "np") as file:
        said = json.loads(file.metadata()[native.HEADER])["spec"]["image_size"]
    assert said == ([16, 8] if size == (16, 8) else 16)
    assert native.load_spec(path) == spec


def test_files_from_before_a_field_was_there(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save(models["dense"], path)

    def older(header):
        del header["spec"]["class_token"], header["spec"]["pool"]

    rewrite(path, older)
    assert load(str(path)).spec == native.load_spec(path) == SPEC


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="missing, damaged"):
        native.load_model(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="missing, damaged"):
        native.load_model(path)
    assert not native.is_native(path)
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="convert it first"):
        native.load_model(path)


def test_truncated_file(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save(models["dense"], path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        native.load_model(path)


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
        (lambda h: h.update(version=99), "format version 99, this package reads 1 and 2"),
        (lambda h: h.update(form="tiny"), "form must be one of"),
        (lambda h: h.pop("spec"), "KeyError: 'spec'"),
        (lambda h: h["spec"].update(type="Swin"), "KeyError: 'Swin'"),
        (lambda h: h["spec"].update(colour="red"), "colour"),
        (lambda h: h["spec"].update(width="wide"), "width must be whole .* got 'wide'"),
        (lambda h: h["spec"].update(image_size=[16, 0]), "image_size 0"),
        (lambda h: h["spec"].update(image_size=[16] * 3), r"expected pixels, .* got \(16, 16, 16"),
        (lambda h: h.update(architecture=None), "needs its architecture"),
        (lambda h: h["architecture"]["ops"].pop(), "ops must name 5 blocks"),
        (lambda h: h["architecture"]["ops"].__setitem__(1, "conv3x3"), "wrong shape|unexpected"),
        (lambda h: h["architecture"]["heads"].__setitem__(3, 4), "heads must be a number up to 3"),
        (lambda h: h["architecture"]["heads"].__setitem__(3, 1), "wrong shape"),
        *[(lambda h, n=n: h["spec"].update({n: 0}), f"{n} 0") for n in native.POSITIVE[4:8]],
        (lambda h: h["spec"].update(hidden=10**12), "hidden 1000000000000"),
        (lambda h: h["spec"].update(classes=-1), "classes -1"),
        (lambda h: h.update(temperature=0), "temperature 0"),
        (lambda h: h.update(temperature=float("nan")), "temperature nan"),
        (lambda h: h.update(temperature=1e-300), "temperature 1e-300"),
        (lambda h: h["spec"].update(epsilon=float("nan")), "epsilon must be .* got nan"),
        (lambda h: h["spec"].update(epsilon=-1.0), "epsilon must be .* got -1.0"),
        (lambda h: h["spec"].update(rotary_base=0), "rotary_base must be .* got 0"),
        (lambda h: h["spec"].update(heads=True), "heads must be whole .* got True"),
        (lambda h: h["spec"].update(classes=9), r"wrong shape head\.kernel.*\[24, 7\].*\[24, 9\]"),
    ],
)
def test_headers_that_lie(models, tmp_path, change, said):
    path = tmp_path / "m.safetensors"
    save(models["folded"], path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=said) as error:
        load(str(path))
    assert str(error.value).count(str(path)) == 1


def test_arrays_that_do_not_fit_are_all_named(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save(models["dense"], path)

    def change(arrays):
        arrays["new"] = arrays.pop("norm.scale")
        arrays["head.bias"] = np.zeros(3, np.float32)

    rewrite(path, change_arrays=change)
    with pytest.raises(CheckpointError) as error:
        load(str(path))
    for part in (
        "in 3 places",
        "missing norm.scale [24]",
        "unexpected new",
        "wrong shape head.bias",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.full(24, np.nan, np.float32), r"1 arrays hold .* NaN, infinite or .*: norm\.scale"),
        (np.full(24, -np.inf, np.float32), r"norm\.scale; the training that made them diverged"),
        (np.full(24, 1e300), r"or too large for float32: norm\.scale"),
        (np.ones(24, np.int8), r"norm\.scale \(int8\) are not: quantised"),
        (np.ones(24, bool), r"norm\.scale \(bool\)"),
    ],
)
def test_what_are_no_weights_is_refused_by_name(models, tmp_path, value, said):
    path = tmp_path / "m.safetensors"
    save(models["dense"], path)
    rewrite(path, change_arrays=lambda arrays: arrays.update({"norm.scale": value}))
    with pytest.raises(CheckpointError, match=said):
        load(str(path))


ABOUT = native.About(("cat", "hund", "猫"), (0.1, 0.2, 0.3), (0.4, 0.5, 1.0), 0.875)


@pytest.mark.parametrize("about", [ABOUT, native.About(), native.About(crop_ratio=1.0)])
def test_what_it_was_trained_on_is_kept(models, tmp_path, about):
    path = tmp_path / "m.safetensors"
    save(models["folded"], path, about=about)
    assert native.read_about(path) == about
    model = load(str(path))
    assert (model.spec, form(model)) == (SPEC, "folded")
    assert model.architecture == models["folded"].architecture


@pytest.mark.parametrize("write", [save, save_torch])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_could_not_be_read_again_is_not_written(tmp_path, write, value):
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    model.norm.scale[...] = value
    with pytest.raises(CheckpointError, match=r"1 arrays hold .* NaN, infinite or .*: norm\.scale"):
        write(model, tmp_path / "m.safetensors")
    assert not any(tmp_path.iterdir())


def test_mean_and_std_are_of_the_channels_that_a_model_sees(models, tmp_path):
    path, grey = tmp_path / "m.safetensors", native.About(mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="are of 1 channels, the model sees images of 3; give"):
        save(models["dense"], path, about=grey)
    model = ViT(dataclasses.replace(SPEC, channels=1), rngs=nnx.Rngs(0))
    save(model, path, about=grey)
    assert native.read_about(path) == grey


def test_a_file_that_does_not_say_what_it_was_trained_on(models, tmp_path):
    path = tmp_path / "m.safetensors"
    save(models["dense"], path)
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
        ("mean", (123.7, 116.3, 103.5), "divide what is of pixels in 0..255 by 255"),
        ("std", (58.4, 57.1, 57.4), "divide what is of pixels in 0..255 by 255"),
        ("crop_ratio", 0.0, "crop_ratio must be in"),
        ("crop_ratio", "half", "crop_ratio must be in"),
        ("colour", "red", "colour"),
    ],
)
def test_what_no_model_was_trained_on(models, tmp_path, field, value, said):
    path = tmp_path / "m.safetensors"
    with pytest.raises((ValueError, TypeError), match=said):
        about = dataclasses.replace(ABOUT, **{field: value})
        save(models["dense"], path, about=about)
    assert not path.exists()
    save(models["dense"], path, about=ABOUT)
    rewrite(path, lambda h: h["about"].update({field: value}))
    with pytest.raises(CheckpointError, match=said) as error:
        native.read_about(path)
    assert str(error.value).count(str(path)) == 1
    with pytest.warns(UserWarning, match=said):
        assert form(load(str(path))) == "dense"  # which does not need it
