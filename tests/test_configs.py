"""Every file of ``configs/`` in every variant, loaded as the command line loads it."""

import json
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from spvit_jax import recipes
from spvit_jax.config import Budget, Config, from_config_dict
from spvit_jax.data.sources import open_source
from spvit_jax.models import VARIANTS
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prices import published_macs

FOLDER = Path(__file__).parents[1] / "configs"
VARIANTS_OF = {
    "quickstart": ("", "paper", "stage=evaluate", "tiny"),
    "backbone": ("", "tiny"),
    "own_data": ("", "stage=evaluate", "tiny"),
    "fashion_mnist": ("", "paper", "pretrain", "stage=evaluate", "tiny"),
    "deit_ti": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
    "deit_s": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
    "deit_b": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
    "swin_t": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
    "swin_s": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
    "swin_b": ("", "stage=finetune", "distill", "beyond", "stage=evaluate", "tiny"),
}
FACEBOOK = "https://dl.fbaipublicfiles.com/deit"
MICROSOFT = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
# checkpoint, published architecture, gate learning rate, lambda, target, drop path
RELEASED = {
    "deit_ti": (f"{FACEBOOK}/deit_tiny_patch16_224-a1311bcf.pth", "deit_tiny", 1e-3, 20, 1, 0.1),
    "deit_s": (f"{FACEBOOK}/deit_small_patch16_224-cd65a155.pth", "deit_small", 5e-4, 3, 3.2, 0.1),
    "deit_b": (f"{FACEBOOK}/deit_base_patch16_224-b5f2ef4d.pth", "deit_base", 1e-3, 0.08, 6, 0.1),
    "swin_t": (f"{MICROSOFT}/swin_tiny_patch4_window7_224.pth", "swin_tiny", 1e-3, 2.8, 3.2, 0.2),
    "swin_s": (f"{MICROSOFT}/swin_small_patch4_window7_224.pth", "swin_small", 1e-3, 0.4, 5.5, 0.3),
    "swin_b": (f"{MICROSOFT}/swin_base_patch4_window7_224.pth", "swin_base", 1e-3, 0.1, 10, 0.5),
}
EVERY = [(name, variant) for name, variants in VARIANTS_OF.items() for variant in variants]


def load(name, variant="", *arguments):
    """The config of ``--config=configs/NAME.py:VARIANT ARGUMENTS``."""
    values = flags.FlagValues()
    argv = ["main", f"--config={FOLDER / name}.py:{variant}".removesuffix(":"), *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return from_config_dict(holder.value)


def test_every_config_has_a_row():
    assert {file.stem for file in FOLDER.glob("*.py")} == set(VARIANTS_OF)


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_config_is_valid_and_its_command_is_documented(name, variant):
    made = load(name, variant)
    assert made.model.variant in ("", *VARIANTS)
    text = (FOLDER / f"{name}.py").read_text()
    assert f"python -m spvit_jax.main --config=configs/{name}.py" in text
    assert variant in text
    if made.stage in ("all", "search"):
        spec = VARIANTS[made.model.variant or "deit_small_patch16_224"]
        (budget,) = Gating.of(made.search, made.budget, spec).budgets
        assert budget.prices.base < budget.target < 0.9 * published_macs(spec).dense


@pytest.mark.parametrize("name", VARIANTS_OF)
def test_one_field_changes_on_the_command_line(name):
    made = load(name, "tiny", "--config.search.epochs=0.5", "--config.seed=3")
    assert (made.search.epochs, made.seed) == (0.5, 3)


@pytest.mark.parametrize("name", VARIANTS_OF)
def test_an_unknown_variant_is_refused_with_those_there_are(name):
    with pytest.raises(
        flags.IllegalFlagValueError, match=r"(?s)ConfigError: .*tiny.*; got 'tinny'"
    ):
        load(name, "tinny")


@pytest.mark.parametrize("name", VARIANTS_OF)
def test_tiny_needs_nothing_but_the_package_and_few_steps(name):
    made = load(name, "tiny")
    assert made.model.variant == made.model.checkpoint.removeprefix("packaged:")
    assert made.data.source == "packaged:fashion_mnist" and made.data.workers == 0
    train, test = (open_source(made.data, s) for s in (made.data.train_split, made.data.test_split))
    assert len(test) <= 200
    parts = (made.pretrain, made.search, made.finetune)
    for part in (part for part in parts if part.epochs):
        assert 2 <= part.epochs * len(train) / part.batch_size <= 12
        assert part.batch_size % 8 == 0  # divides among 8 devices
    assert made.data.eval_batch_size % 8 == 0
    assert made.measure_seconds <= 0.5
    full = load(name)
    assert (made.stage, made.model.dtype, made.finetune.start, made.data.augment) == (
        full.stage,
        full.model.dtype,
        full.finetune.start,
        full.data.augment,
    )


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_fashion_mnist_is_normalised_alike_everywhere(name, variant):
    data = load(name, variant).data
    if "fashion_mnist" in data.source:
        fields = {field: getattr(data, field) for field in recipes.FASHION_MNIST}
        assert fields == recipes.FASHION_MNIST


def test_tiny_takes_any_config():
    made = Config()
    made.finetune.accumulation, made.finetune.batch_size = 64, 64
    made.model.image_size, made.model.classes = 384, 1000
    small = recipes.tiny(made)
    from_config_dict(json.loads(json.dumps(small, default=vars)))
    assert (small.model.size, small.model.classes) == (0, 0)
    assert made.model.image_size == 384  # a copy


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_recipe(name):
    checkpoint, _, gate_rate, weight, target, drop_path = RELEASED[name]
    made = load(name)
    swin = name.startswith("swin")
    assert made.model.checkpoint == checkpoint
    assert checkpoint.rpartition("/")[2].startswith(made.model.variant)
    search, finetune = made.search, made.finetune
    assert search.gate_learning_rate == gate_rate
    assert made.budget == Budget(macs=target * 1e9, count="published")
    assert search.budget_lambda == pytest.approx(weight * target**2)  # of the relative penalty
    assert (search.axes, search.ops, search.unit_group) == (("op", "ffn"), PAPER, 1)
    assert (search.epochs, search.decision) == (20, "project")
    assert (search.schedule, finetune.schedule) == ("constant", "cosine")
    assert (finetune.epochs, finetune.final_learning_rate) == (130, 5e-6 if swin else 1e-5)
    assert finetune.start == "pretrained"
    for part in (search, finetune):
        assert (part.batch_size, part.label_smoothing, part.weight_decay) == (1024, 0.1, 0.05)
        assert part.learning_rate == pytest.approx(1e-4)
        assert part.clip_norm == (5.0 if swin else 0.0)
        assert part.warmup_epochs == part.ema_decay == 0
        assert part.distillation == "none"
    assert (made.model.drop_path, made.model.dtype) == (drop_path, "bfloat16")
    data = made.data
    assert (data.source, data.train_split) == ("tfds:imagenet2012", "train")
    assert (data.test_split, data.augment, data.crop_ratio) == ("validation", "recipe", 0.875)
    assert (data.mixup, data.cutmix, data.erasing) == (0.8, 1.0, 0.25)
    assert data.repeats == (1 if swin else 3) and data.on_error == "raise"


@pytest.mark.parametrize("variant", ["stage=finetune", "distill"])
@pytest.mark.parametrize("name", RELEASED)
def test_finetuning_starts_from_the_published_architecture(name, variant):
    made = load(name, variant)
    assert made.stage == "finetune"
    found = architectures.load(made.finetune.architecture)
    assert Path(made.finetune.architecture).name == f"spvit_{RELEASED[name][1]}.json"
    assert found.model == made.model.variant
    found.check(VARIANTS[made.model.variant])


@pytest.mark.parametrize("name", RELEASED)
def test_distillation_is_the_released_one(name):
    made = load(name, "distill")
    assert made.teacher.checkpoint == f"{FACEBOOK}/regnety_160-a5fe301d.pth"
    assert (made.teacher.dtype, made.teacher.mean, made.teacher.std) == ("bfloat16", (), ())
    finetune = made.finetune
    assert (finetune.distillation, finetune.distillation_weight) == ("hard", 0.5)
    assert (finetune.epochs, made.search.distillation) == (200, "none")
    plain = load(name, "stage=finetune")
    made.teacher, made.finetune.distillation, made.finetune.epochs = plain.teacher, "none", 130
    assert made == plain


@pytest.mark.parametrize("name", [*RELEASED, "quickstart", "fashion_mnist"])
def test_beyond_the_paper_nothing_is_searched_dropped_mixed_or_labelled(name):
    made = load(name, "beyond" if name in RELEASED else "")
    assert made.budget == Budget(macs=0.5) and made.scores and made.trainings == ("finetune",)
    tokens = () if name.startswith("swin") else ("tokens",)  # whose windows need all of theirs
    assert (
        made.search.axes == ("op", "heads", "dims", *tokens, "ffn")
        and made.shortlist.candidates == 3
    )
    assert made.model.dropout == made.model.drop_path == 0
    assert made.data.mixup == made.data.cutmix == made.data.erasing == 0
    tuning = made.finetune
    assert (tuning.start, tuning.distillation) == ("repaired", "features")
    assert (tuning.distillation_weight, tuning.schedule) == (1.0, "cosine")
    if name.startswith("deit"):
        assert VARIANTS[made.model.variant].distilled
        assert f"/{made.model.variant}-" in made.model.checkpoint


@pytest.mark.parametrize("name", VARIANTS_OF)
def test_a_stage_after_the_colon_is_that_stage(name):
    assert load(name, "stage=evaluate").stage == "evaluate"


@pytest.mark.parametrize("name", RELEASED)
def test_tiny_prunes_the_family_and_distils(name):
    made = load(name, "tiny")
    assert made.model.variant == f"{name[:4]}_fashion_mnist"
    assert made.teacher.checkpoint == "packaged:regnety_fashion_mnist"
    assert made.finetune.distillation == "hard"


def test_own_data_takes_a_folder_and_holds_out_a_tenth_where_nothing_else_is(tmp_path):
    (tmp_path / "cat").mkdir()
    data = load("own_data", tmp_path).data
    assert (data.source, data.test_split) == (f"folder:{tmp_path}", "val")
    assert data.val_share == 0.1
    (tmp_path / "val").mkdir()
    assert load("own_data", tmp_path).data.val_share == 0


def test_another_architecture_can_be_given():
    path = str(FOLDER / "architectures" / "spvit_deit_base_33.json")
    made = load("deit_b", "", "--config.stage=finetune", f"--config.finetune.architecture={path}")
    found = architectures.load(made.finetune.architecture)
    assert found.model == made.model.variant
    spec = VARIANTS[found.model]
    assert found.published_macs(spec) == 11_730_751_488 > found.macs(spec)
