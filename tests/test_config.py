"""The schema refuses what cannot run, and says which field is to blame."""

import dataclasses
import json

import pytest

from spvit_jax import config
from spvit_jax.config import FORMATS, Config, ConfigError, from_config_dict, to_config_dict
from spvit_jax.export import SUFFIXES
from spvit_jax.models import ViTSpec
from spvit_jax.single_path.space import Space


def changed(path, value, **others):
    """The defaults, made valid, with one field changed, as a plain dictionary."""
    values = json.loads(json.dumps(dataclasses.asdict(Config())))
    values["budget"]["macs"] = 0.5
    for name, new in {path: value, **others}.items():
        *groups, last = name.split(".")
        group = values
        for part in groups:
            group = group[part]
        group[last] = new
    return values


def fields(cls, path=""):
    """Every field below ``cls`` and its type."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{path}{field.name}.")
        else:
            yield path + field.name, field.type


FIELDS = dict(fields(Config))


def test_round_trip_through_the_config_dict_and_json():
    made = from_config_dict(changed("seed", 7))
    assert made.seed == 7 and made.budget.macs == 0.5
    assert from_config_dict(to_config_dict(made)) == made
    assert from_config_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_the_config_dict_is_locked_and_takes_fractions_where_the_file_says_integers():
    made = to_config_dict(Config(search=config.Search(epochs=3), budget=config.Budget(macs=1)))
    made.search.epochs = 0.5  # a flag does just that
    with pytest.raises(AttributeError):
        made.search.epoch = 3


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_another_type(name):
    wrong = 3 if FIELDS[name] is str else "three"
    with pytest.raises(ConfigError, match=rf"^{name} must be a "):
        from_config_dict(changed(name, wrong))
    with pytest.raises(ConfigError, match=rf"^{name} must be a "):
        from_config_dict(changed(name, None))


def test_an_image_size_is_one_number_or_two():
    for value, size in ((0, 0), (224, 224), ([224], 224), ([224, 224], 224), ([64, 96], (64, 96))):
        assert from_config_dict(changed("model.image_size", value)).model.size == size
    made = to_config_dict(from_config_dict(changed("seed", 0)))
    made.model.image_size = (64, 96)  # what --config.model.image_size=64,96 does
    assert from_config_dict(made).model.size == (64, 96)


def test_whole_numbers_are_not_fractions_and_switches_not_numbers():
    assert from_config_dict(changed("search.epochs", 3)).search.epochs == 3.0
    for name, value in (("seed", 1.5), ("seed", True), ("model.remat", 1)):
        with pytest.raises(ConfigError, match=rf"^{name} must be a (int|bool), got {value}"):
            from_config_dict(changed(name, value))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("search.epoch", r"config has no field search\.epoch; did you mean search\.epochs\?"),
        ("model.drop_paths", r"no field model\.drop_paths; did you mean model\.drop_path\?"),
        ("sede", r"no field sede; did you mean seed\?"),
        ("finetune.zzz", r"no field finetune\.zzz; it has \['accumulation', 'architecture'"),
        ("pretrain.gate_learning_rate", r"no field pretrain\.gate_learning_rate"),
        ("search.target_ratio", r"no field search\.target_ratio"),
        ("search.macs", r"no field search\.macs"),
        ("budget.mac", r"no field budget\.mac; did you mean budget\.macs\?"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest(path, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(path, 1))


def test_a_group_is_not_a_value():
    with pytest.raises(ConfigError, match=r"^search is a group of fields, got 3"):
        from_config_dict({"search": 3})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stage", "prune", r"^stage must be one of all, pretrain.*got 'prune'"),
        ("model.dtype", "float16", r"^model\.dtype must be one of float32, bfloat16"),
        ("model.dropout", 1.0, r"^model\.dropout must be in \[0, 1\)"),
        ("model.drop_path", 2.0, r"^model\.drop_path must be in \[0, 1\)"),
        ("model.image_size", [224, 384, 3], r"^model\.image_size: .*or two, .*got \(224, 384, 3\)"),
        ("model.image_size", [224, 0], r"^model\.image_size: .*above 0 .*got \(224, 0\)"),
        ("model.image_size", -224, r"^model\.image_size: .*above 0 .*got \(-224,\)"),
        ("data.augment", "mixup", r"^data\.augment must be one of none, flip, shift"),
        (
            "data.source",
            "imagenet",
            r"^data\.source .*packaged, folder, tfds, inat, idx; got 'imagenet'",
        ),
        ("data.mean", [0.5], r"^data\.mean and data\.std need three numbers"),
        ("data.std", [0.5, 0.5, 0.0], r"^data\.mean and data\.std .*above 0"),
        ("data.mean", [123.7, 116.3, 103.5], r"^data\.mean must be in 0 to 1 .* by 255"),
        ("data.std", [58.4, 57.1, 57.4], r"^data\.mean .*data\.std above 0 and up to 1; .* by 255"),
        ("data.mean", [float("nan"), 0.5, 0.5], r"^data\.mean must be in 0 to 1"),
        ("data.crop_ratio", 1.2, r"^data\.crop_ratio must be in \(0, 1\]"),
        ("search.decision", "best", r"^search\.decision must be one of project, threshold"),
        ("budget.macs", 0.0, r"^set a budget: budget\.macs or budget\.params, .*budget\.latency"),
        ("budget.count", "both", r"^budget\.count must be one of run, published; got 'both'"),
        *(
            ("budget.latency", value, rf"^budget\.latency is TABLE\.json:SHARE, .*got '{value}'")
            for value in ("t.json", "t.json:", ":0.5", "t.json:half", "t.json:0", "t.json:1.1")
        ),
        ("budget.latency", "t.json:-0.5", r"^budget\.latency is TABLE\.json:SHARE"),
        ("budget.latency", "t.json:nan", r"^budget\.latency is TABLE\.json:SHARE"),
        ("search.axes", ["op", 3], r"^search\.axes must be a str, got 3"),
        ("search.ops", [None], r"^search\.ops must be a str, got None"),
        ("search.schedule", "linear", r"^search\.schedule must be one of constant, cosine"),
        ("finetune.accumulation", 3, r"^finetune\.accumulation must divide .*=128, got 3"),
        ("pretrain.distillation", "logits", r"^pretrain\.distillation .*soft, features; got 'logi"),
        ("search.ema_decay", 1.0, r"^search\.ema_decay must be in \[0, 1\)"),
        ("search.label_smoothing", 1.0, r"^search\.label_smoothing must be in \[0, 1\)"),
        ("finetune.start", "scratch", r"^finetune\.start must be one of pretrained, searched"),
        ("export.formats", ["onnx", "pdf"], r"^export\.formats may have onnx, .*torch; got 'pdf'"),
        ("export.opset", 16, r"^export\.opset must be 17, 20 or 23; got 16"),
        ("export.pixels", "int8", r"^export\.pixels must be float32 or uint8; got 'int8'"),
        ("export.layout", "HWC", r"^export\.layout must be NCHW or NHWC; got 'HWC'"),
        ("seed", 2**32, r"^seed must be below 2\*\*32"),
    ],
)
def test_values_that_cannot_work_are_refused(path, value, message):
    from_config_dict(changed("seed", 0))  # only the change is at fault
    with pytest.raises(ConfigError, match=message):
        from_config_dict(changed(path, value))


@pytest.mark.parametrize("name", [name for name, kind in FIELDS.items() if kind in (int, float)])
def test_no_number_is_negative_or_infinite(name):
    wrong = [-1] if FIELDS[name] is int else [-1.0, float("inf"), float("nan")]
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^{name} must be (above 0|0 or more), got {value}"):
            from_config_dict(changed(name, value))


@pytest.mark.parametrize(
    "name",
    [
        *(f"{part}.{name}" for part in ("pretrain", "search", "finetune") for name in (
            "batch_size", "accumulation", "learning_rate"
        )),
        "pretrain.epochs",
        "finetune.epochs",
        "shortlist.steps",
        "score.images",
        "data.eval_batch_size",
        "search.unit_group",
        "checkpoint_every",
        "log_every",
        "measure_batch",
        "measure_seconds",
    ],
)  # fmt: skip
def test_what_is_divided_by_or_counted_is_not_zero(name):
    with pytest.raises(ConfigError, match=rf"^{name} must be above 0, got 0"):
        from_config_dict(changed(name, 0))


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "evaluate"])
def test_a_budget_is_only_asked_of_a_search(stage):
    others = {"budget.macs": 0.0, "finetune.architecture": "found.json"}
    from_config_dict(changed("stage", stage, **others))


@pytest.mark.parametrize(
    "budget",
    [
        {"macs": 0.5, "params": 0.6, "latency": "t.json:0.6"},
        {"macs": 2e9, "count": "published"},
        {"params": 5e6},
        {"latency": "C:/tables/t.json:1"},
        {"latency": "gs://bucket/t.json:0.5"},
    ],
)
def test_any_budget_alone_or_with_others_will_do(budget):
    others = {f"budget.{name}": value for name, value in budget.items()}
    made = from_config_dict(changed("stage", "search", **({"budget.macs": 0.0} | others)))
    assert made.budget == config.Budget(**budget)


def test_the_papers_space_is_what_is_searched_if_nothing_is_said():
    search = Config().search
    space = Space(ViTSpec(width=16, depth=1, heads=2, hidden=8, patch_size=8).blocks)
    assert (search.ops, search.axes, search.unit_group) == (space.ops, space.axes, 1)


def test_axes_and_operations_come_back_as_tuples():
    others = {"search.ops": ["skip", "msa"], "search.unit_group": 8}
    made = from_config_dict(changed("search.axes", ["op", "heads"], **others))
    assert (made.search.axes, made.search.ops) == (("op", "heads"), ("skip", "msa"))
    assert from_config_dict(to_config_dict(made)) == made


def test_finetuning_alone_needs_an_architecture_and_has_no_searched_weights():
    with pytest.raises(ConfigError, match=r"^stage=finetune needs finetune\.architecture: the"):
        from_config_dict(changed("stage", "finetune"))
    others = {"finetune.architecture": "found.json", "finetune.start": "searched"}
    with pytest.raises(ConfigError, match=r"^finetune\.start=searched needs the search"):
        from_config_dict(changed("stage", "finetune", **others))


def test_features_are_of_more_than_one_image():
    values = changed("finetune.distillation", "features")
    assert from_config_dict(values).finetune.distillation == "features"
    values["finetune"] |= {"batch_size": 8, "accumulation": 8}
    with pytest.raises(ConfigError, match=r"finetune\.batch_size must be above"):
        from_config_dict(values)


def test_a_warm_up_ends_within_its_training():
    values = dataclasses.asdict(Config()) | {"stage": "pretrain"}
    values["pretrain"] |= {"epochs": 2.0, "warmup_epochs": 2.0}
    with pytest.raises(ConfigError, match=r"pretrain\.warmup_epochs=2 never ends"):
        from_config_dict(values)


def test_formats_are_those_of_the_export_and_their_libraries_are_asked_for(monkeypatch):
    assert set(FORMATS.values()) == set(SUFFIXES)
    onnx = ["onnx", "int8.onnx", "torch"]
    assert from_config_dict(changed("export.formats", onnx)).export.formats == tuple(onnx)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx needs onnx, onnxr.*'spvit_jax\[export\]'"):
        from_config_dict(changed("export.formats", onnx))
    with pytest.raises(ConfigError, match=r"tflite needs litert_.*'spvit_jax\[litert\]'"):
        from_config_dict(changed("export.formats", ["int8.tflite"]))
    from_config_dict(changed("export.formats", ["stablehlo", "torch"]))


@pytest.mark.parametrize("group", ["model", "teacher"])
def test_no_password_gets_into_what_a_run_writes_down(group):
    values = changed(f"{group}.checkpoint", "https://user:secret@host/x.pth")
    with pytest.raises(ConfigError, match=f"{group}.checkpoint=https://…@host/x.pth has") as error:
        from_config_dict(values)
    assert "secret" not in str(error.value)
