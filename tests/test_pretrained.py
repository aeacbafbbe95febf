"""What a run starts from: specs that fit data and stage, and teachers that fit the student."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax import pretrained, teachers
from spvit_jax.config import Config, ConfigError, Model, from_config_dict
from spvit_jax.convert import CheckpointError, about_of, save, save_torch
from spvit_jax.convert.errors import Unreachable
from spvit_jax.convert.native import About
from spvit_jax.models import MODELS, VARIANTS, RegNetSpec, SwinSpec, ViTSpec
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet

VIT = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=8, image_size=16, classes=3)
SWIN = SwinSpec(16, (2, 2), (2, 4), (32, 64), 2, 2, 8, 3)
REGNET = RegNetSpec((8, 16), (1, 1), 8, classes=3)
FOUND = Architecture(("conv3x3", "msa"), ((0, 3), (1,)))


def build(spec):
    return MODELS[type(spec)](spec, rngs=nnx.Rngs(0))


def config(**model):
    return Config(model=Model(**model))


def teaching(path, **teacher):
    made = Config()
    made.teacher = dataclasses.replace(made.teacher, checkpoint=str(path), **teacher)
    return made


def test_a_variant_gets_the_classes_and_the_image_size():
    spec = pretrained.dense_spec(config(variant="deit_tiny_patch16_224", image_size=384), 10)
    expected = VARIANTS["deit_tiny_patch16_224"]
    assert spec == dataclasses.replace(expected, image_size=384, classes=10)
    wide = config(variant="swin_tiny_patch4_window7_224", image_size=(224, 448))
    assert pretrained.dense_spec(wide, 10).blocks[0].grid == (56, 112)
    assert pretrained.dense_spec(config(classes=12), 10).classes == 12


def test_an_empty_variant_reads_the_checkpoint(tmp_path):
    for name, spec, heads in (("vit", VIT, 2), ("swin", SWIN, 0)):
        path = tmp_path / f"{name}.safetensors"
        save_torch(build(spec), path)
        made, notes = config(variant="", checkpoint=str(path), heads=heads), []
        assert pretrained.dense_spec(made, 3) == spec
        model = pretrained.load_dense(made, spec, notes)
        assert type(model) is MODELS[type(spec)] and len(notes) == 1
        assert "with which mean, std, crop_ratio it was trained: data.mean=(0.485, " in notes[0]


@pytest.mark.parametrize(
    ("made", "found", "message"),
    [
        (config(variant="deit_giant"), 3, r"one of deit_tiny_patch16_224, .*; got 'deit_giant'"),
        (config(classes=2), 3, r"model.classes=2, but the data has 3"),
        (config(image_size=100), 3, r"model.image_size=100: the patch size must divide"),
        (config(image_size=(224, 100)), 3, r"model.image_size=224x100: the patch size must"),
        (
            config(variant="swin_tiny_patch4_window7_224", image_size=256),
            3,
            r"model.image_size=256: windows of 7x7 .*choose a multiple of 224",
        ),
        (config(variant="regnety_160"), 3, r"a RegNetY has no attention to prune"),
        (config(variant=""), 3, r"model.checkpoint is empty"),
    ],
)
def test_what_cannot_be_built_is_refused(made, found, message):
    with pytest.raises(ConfigError, match=message):
        pretrained.dense_spec(made, found)


def test_a_regnet_may_be_trained_and_evaluated():
    for stage in ("pretrain", "evaluate"):
        made = config(variant="regnety_160")
        made.stage = stage
        spec = pretrained.dense_spec(made, 10)
        assert pretrained.options(made, spec) == {"dtype": None}


def logits(teacher, images):
    return teacher.logits(teacher.state, teacher.normalise(images), teacher.normalise)


@pytest.mark.parametrize("spec", [VIT, SWIN, REGNET], ids=["vit", "swin", "regnet"])
def test_a_teacher_of_any_family_sees_the_students_images(spec, tmp_path):
    student = dataclasses.replace(VIT, image_size=32)
    path = tmp_path / "teacher.safetensors"
    save_torch(build(spec), path)
    made = teaching(path, heads=2 if spec is VIT else 0, dtype="float32")
    images = jnp.zeros((2, 32, 32, 3), jnp.uint8)
    assert logits(teachers.load_teacher(made, student), images).shape == (2, 3)


def test_without_a_checkpoint_the_teacher_is_the_runs_own_dense_model(tmp_path):
    path, model = tmp_path / "dense.safetensors", build(VIT)
    save_torch(model, path)
    made = config(checkpoint=str(path))
    made.teacher.dtype = "float32"
    made.data.mean, made.data.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    teacher = teachers.load_teacher(made, VIT)
    assert (teacher.normalise.mean, teacher.normalise.std) == (made.data.mean, made.data.std)
    expected = model((images / 255 - made.data.mean) / made.data.std)
    np.testing.assert_allclose(logits(teacher, jnp.asarray(images)), expected, rtol=1e-4, atol=1e-5)


def test_a_pruned_model_teaches_at_its_own_size_only(tmp_path):
    path = tmp_path / "pruned.safetensors"
    save(fold(prune(build(VIT), FOUND), batch_norm=True), path)
    made = teaching(path, mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = teachers.load_teacher(made, VIT)
    assert teacher.normalise.mean == (0.5,) * 3
    assert logits(teacher, jnp.zeros((1, 16, 16, 3), jnp.uint8)).shape == (1, 3)
    said = rf"{path}: a pruned model .*for images of 16 pixels stays so; expected 32"
    with pytest.raises(CheckpointError, match=said):
        teachers.load_teacher(made, dataclasses.replace(VIT, image_size=32))


def test_a_teacher_of_other_classes_or_without_an_op_is_refused(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save(supernet(build(VIT)), path)
    with pytest.raises(ConfigError, match=r"is a supernet; give a dense"):
        teachers.load_teacher(teaching(path), VIT)
    with pytest.raises(ConfigError, match=r"knows 3 classes, the student 10"):
        teachers.load_teacher(teaching(path), dataclasses.replace(VIT, classes=10))


def test_a_head_yet_untrained_teaches_nothing(tmp_path):
    path, wider = tmp_path / "dense.safetensors", dataclasses.replace(VIT, classes=5)
    made = config(checkpoint=str(path), heads=2)
    made.budget.macs, made.finetune.distillation = 0.5, "soft"
    save_torch(build(VIT), path)
    teachers.check_teachers(made, VIT)
    with pytest.raises(ConfigError, match=r"fresh one: .*knows 3 classes, the model 5 .*=none or"):
        teachers.check_teachers(made, wider)
    save(build(dataclasses.replace(VIT, classes=0)), path)
    with pytest.raises(ConfigError, match=r"dense\.safetensors has no head, the model 3 classes"):
        teachers.check_teachers(made, VIT)
    for kind in ("features", "none"):
        made.finetune.distillation = kind
        teachers.check_teachers(made, wider)


def test_a_head_that_knows_the_classes_in_another_order_neither_teaches_nor_is_pruned(tmp_path):
    path, names, notes = tmp_path / "own.safetensors", ("a", "b", "c"), []
    made = teaching(path)
    made.budget.macs, made.finetune.distillation = 0.5, "soft"
    own, order = config(checkpoint=str(path)), r"own\.safetensors has .* order: number 0 is 'c'"
    save(build(VIT), path, about=About(("c", "a", "b")))
    with pytest.raises(ConfigError, match=order):
        teachers.check_teachers(made, VIT, names)
    with pytest.raises(ConfigError, match=order):
        pretrained.load_dense(own, VIT, [], names)
    pretrained.load_dense(own, VIT, [])  # a fresh head knows none
    save(build(VIT), path, about=About(("x", "b", "c")))
    (note,) = teachers.check_teachers(made, VIT, names)
    pretrained.load_dense(own, VIT, notes, names)
    assert "'x', …, not 'a', …" in note and "'x', …, not 'a', …" in notes[0]
    made.finetune.distillation = "features"
    assert teachers.check_teachers(made, VIT, names) == []


def test_a_teacher_sees_images_as_its_own_files_say(tmp_path):
    weights, beside = tmp_path / "model.safetensors", tmp_path / "config.json"
    said = {"mean": [0.5] * 3, "std": [0.25] * 3}
    args = {"patch_size": 8, "num_heads": 2}
    values = {"architecture": "vit_tiny_patch16_224", "model_args": args, "pretrained_cfg": said}
    beside.write_text(json.dumps(values))
    save_torch(build(VIT), weights)
    for features in (False, True):
        seen = teachers.load_teacher(teaching(tmp_path), VIT, features).normalise
        assert (seen.mean, seen.std) == ((0.5,) * 3, (0.25,) * 3)
    named = teachers.load_teacher(teaching(tmp_path, mean=(0.1,) * 3, std=(0.2,) * 3), VIT)
    assert (named.normalise.mean, named.normalise.std) == ((0.1,) * 3, (0.2,) * 3)
    beside.unlink()
    data = Config().data
    unknown = teachers.load_teacher(teaching(tmp_path, heads=2), VIT).normalise
    assert (unknown.mean, unknown.std) == (data.mean, data.std)
    save(build(VIT), weights, about=About((), (0.4,) * 3, (0.3,) * 3))
    assert teachers.load_teacher(teaching(tmp_path), VIT).normalise.mean == (0.4,) * 3


@pytest.mark.parametrize("kind", ["soft", "features"])
def test_a_teacher_is_looked_through_before_it_teaches(tmp_path, kind, monkeypatch):
    path, model = tmp_path / "teacher.safetensors", build(VIT)
    made = teaching(path)
    made.budget.macs, made.finetune.distillation = 0.5, kind
    save(model, path)
    teachers.check_teachers(made, VIT)
    made.teacher.mean, made.teacher.std = (0.5,), (0.5,)
    with pytest.raises(ConfigError, match=r"RGB images: .* for teacher\.mean and std; got 1"):
        teachers.check_teachers(made, VIT)
    made.teacher.mean = made.teacher.std = ()
    model.head.kernel[...], model.norm.scale[...] = jnp.nan, jnp.nan
    with monkeypatch.context() as damaged:
        damaged.setattr("spvit_jax.convert.forms.check_numbers", lambda arrays: None)
        save(model, path)
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors: \d arrays hold .*NaN"):
        teachers.check_teachers(made, VIT)
    save(build(VIT), path)
    made = dataclasses.replace(made, model=Model(checkpoint=str(path)))
    made.teacher = dataclasses.replace(made.teacher, checkpoint="", mean=(0.5,), std=(0.5,))
    with pytest.raises(ConfigError, match=r"RGB images: .* for teacher\.mean and std; got 1"):
        teachers.check_teachers(made, VIT)


def test_a_teacher_that_cannot_be_reached_now_may_be_later(monkeypatch):
    def fail(*_):
        raise Unreachable("connection refused")

    monkeypatch.setattr(teachers, "read_spec", fail)
    made = teaching("https://host/teacher.safetensors")
    made.finetune.distillation = "features"
    with pytest.raises(Unreachable, match=r"teacher\.checkpoint=https.*: connection refused"):
        teachers.check_teachers(made, VIT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune.distillation": "gentle"}, r"one of none, hard, soft, features; got 'gentle'"),
        ({"finetune.distillation_weight": 1.5}, r"distillation_weight must be in \[0, 1\]"),
        ({"search.distillation_temperature": 0.0}, r"temperature must be above 0"),
        ({"teacher.mean": (128.0,), "teacher.std": (64.0,)}, r"^teacher\.mean must be .* by 255"),
        ({"teacher.mean": (0.5, 0.5, 0.5)}, r"three numbers each, std above 0, or one of"),
        ({"teacher.dtype": "float8"}, r"teacher.dtype must be one of"),
        (
            {"stage": "pretrain", "pretrain.distillation": "soft"},
            r"pretrain.distillation needs teacher.checkpoint",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    made = Config()
    made.budget.macs = 0.5
    values = json.loads(json.dumps(dataclasses.asdict(made)))
    for path, value in changes.items():
        *groups, name = path.split(".")
        part = values
        for group in groups:
            part = part[group]
        part[name] = value
    with pytest.raises(ConfigError, match=message):
        from_config_dict(values)


def evaluated(path, found=3, **model):
    """``load_trained`` for data of ``found`` classes, and its notes."""
    made, notes = config(checkpoint=str(path), **model), []
    made.stage = "evaluate"
    return pretrained.load_trained(made, pretrained.dense_spec(made, found), notes), notes


@pytest.mark.parametrize("spec", [VIT, SWIN, REGNET], ids=["vit", "swin", "regnet"])
def test_any_dense_model_is_evaluated(tmp_path, spec):
    path, model = tmp_path / "dense.safetensors", build(spec)
    for write in (save_torch, save):
        write(model, path)
        found, notes = evaluated(path, variant="", heads=2 * (spec is not REGNET))
        assert (form(found), notes) == ("dense", [])
        side = spec.image_size if spec is not REGNET else 16  # which takes any
        images = np.random.default_rng(0).standard_normal((2, side, side, 3))
        np.testing.assert_allclose(found(images), model(images), rtol=1e-5, atol=1e-6)


def test_a_dense_model_is_evaluated_at_another_size(tmp_path, monkeypatch):
    path = tmp_path / "dense.safetensors"
    save_torch(build(VIT), path)
    monkeypatch.setitem(pretrained.VARIANTS, "mine", VIT)  # says the heads
    found, notes = evaluated(path, variant="mine", image_size=32)
    assert found.spec == dataclasses.replace(VIT, image_size=32)
    assert len(notes) == 1 and "4x4" in notes[0]
    wide = dataclasses.replace(VIT, image_size=(16, 56))
    save_torch(build(wide), path)
    assert evaluated(path, variant="mine", image_size=(16, 56))[0].spec == wide
    read = evaluated(path, variant="", heads=2, image_size=(16, 56))[0].spec
    assert read == wide
    with pytest.raises(
        CheckpointError, match=r"14 patches, which is no square.* model.image_size="
    ):
        evaluated(path, variant="", heads=2)


def test_a_pruned_model_is_evaluated_in_the_form_it_is_in(tmp_path, monkeypatch):
    path = tmp_path / "pruned.safetensors"
    model = fold(prune(build(VIT), FOUND), batch_norm=True)
    save(model, path)
    monkeypatch.setitem(pretrained.VARIANTS, "mine", VIT)
    monkeypatch.setitem(pretrained.VARIANTS, "other", dataclasses.replace(VIT, width=32))
    assert evaluated(path, variant="")[1] == []
    found, notes = evaluated(path, variant="mine")
    assert form(found) == "deploy" and "(deploy form), evaluated as it is" in notes[0]
    with pytest.raises(ConfigError, match=r"images of 16 pixels.*not 32"):
        evaluated(path, variant="", image_size=32)
    for variant in ("other", "swin_tiny_patch4_window7_224"):
        with pytest.raises(ConfigError, match=rf"no pruned {variant}: .*\[16, 16\] features"):
            evaluated(path, variant=variant)


def test_a_released_supernet_is_evaluated_as_its_gates_decide(tmp_path):
    network, images = supernet(build(VIT)), jnp.ones((1, 16, 16, 3))
    path, space = tmp_path / "search.safetensors", Space(VIT.blocks)
    logits = initial_logits(space)
    gates = decide(space, ({**logits[0], "op": jnp.asarray([1.0, 1.0, -1.0])}, logits[1]))
    save(network, path)
    with pytest.raises(CheckpointError, match="a supernet without gate logits"):
        evaluated(path, variant="")
    network.architecture = from_gates(gates, space.ops)
    save(network, path)
    found, notes = evaluated(path, variant="")
    assert (form(found), found.architecture.ops) == ("shared", ("conv3x3", "msa"))
    assert "pruned as its gates decide: conv3x3 msa" in notes[0]
    np.testing.assert_allclose(found(images), network(images, gates), rtol=1e-5, atol=1e-6)


def test_a_head_of_other_classes_is_never_evaluated(tmp_path):
    for model in (build(VIT), prune(build(VIT), FOUND)):
        path = tmp_path / f"{form(model)}.safetensors"
        save(model, path)
        with pytest.raises(ConfigError, match=r"knows 3 classes, the data has 2.*classes=3"):
            evaluated(path, 2, variant="")
        with pytest.raises(ConfigError, match=r"knows 3 classes, the data has 4"):
            evaluated(path, 4, variant="")
        with pytest.raises(ConfigError, match=r"knows 3 classes, model.classes asks for 5"):
            evaluated(path, 4, variant="", classes=5)
        assert evaluated(path, variant="")[0].spec.classes == 3


def test_what_a_model_was_trained_on_is_compared():
    made = Config()
    names, data = ("a", "b", "c"), made.data
    check = pretrained.check_about
    seen = data.mean, data.std, data.crop_ratio
    assert check(About(names, *seen), made, names) == []
    assert check(About((*names, "d"), *seen), made, names) == []
    (note,) = check(About(names, crop_ratio=data.crop_ratio), made, names)
    assert f"mean, std it was trained: data.mean={data.mean}, data.std={data.std} are" in note
    (note,) = check(About(("x", "b", "c"), *seen), made, names)
    assert "'x', …, not 'a', …" in note
    notes = check(About((), (0.5,) * 3, (0.5,) * 3, 1.0), made, names)
    assert [note.partition("=")[0].rpartition(".")[2] for note in notes] == [
        "mean",
        "std",
        "crop_ratio",
    ]
    with pytest.raises(ConfigError, match=r"another order: number 1 is 'c', the data's 'b'"):
        check(About(("a", "c", "b")), made, names)


def test_only_our_own_files_say_what_a_model_was_trained_on(tmp_path):
    path, about = tmp_path / "m.safetensors", About(("a", "b", "c"))
    save(build(VIT), path, about=about)
    assert about_of(str(path)) == about
    save_torch(build(VIT), path)
    assert about_of(str(path)) == About()


@pytest.mark.parametrize("said", [{"mean": [0.5] * 3}, {"crop_pct": 1.5}])
def test_what_no_images_are_prepared_by_is_said(tmp_path, said):
    values = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": said}
    values["model_args"] = {"patch_size": 8, "num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_torch(build(VIT), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*, or move them away"):
        about_of(str(tmp_path))
