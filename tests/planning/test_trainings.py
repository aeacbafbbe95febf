import dataclasses
import runpy
from pathlib import Path

import jax
import pytest
from flax import nnx

from spvit_jax.config import ConfigError, Data, from_config_dict
from spvit_jax.convert import forms
from spvit_jax.convert.fetch import fetch
from spvit_jax.data.errors import DataError
from spvit_jax.models import VARIANTS, RegNetSpec
from spvit_jax.planning.trainings import Images, trainings
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.budget import BudgetError

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGENET = Images(1_281_167, 50_000, 1000)
DEIT = str(CONFIGS / "architectures" / "spvit_deit_base_33.json")


def config(file, variant="", **changes):
    values = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](variant).to_dict()
    for name, value in changes.items():
        group, field = name.split("__")
        values[group][field] = value
    return from_config_dict(values)


def leaves(planned):
    shapes = jax.tree.leaves(nnx.state(planned.model))
    return shapes + (jax.tree.leaves(planned.teacher.state) if planned.teacher else [])


def test_imagenet_is_known_and_other_data_is_looked_at(tmp_path):
    assert Images.of(config("deit_b").data) == IMAGENET
    half = dataclasses.replace(config("deit_b").data, train_split="train[:50%]")
    assert Images.of(half) == Images(640_584, 50_000, 1000)
    assert Images.of(config("quickstart", "tiny").data) == Images(320, 128, 10)
    with pytest.raises(DataError):
        Images.of(Data(source=f"folder:{tmp_path / 'nowhere'}"))
    with pytest.raises(DataError):  # no split of that name is known, and the data is not here
        Images.of(dataclasses.replace(half, test_split="test", directory=str(tmp_path)))


def test_a_search_and_a_fine_tuning_of_what_it_may_find():
    search, finetune = trainings(config("deit_b"), IMAGENET)
    assert (search.name, search.recipe.steps) == ("search", 20 * 1251)
    assert (finetune.name, finetune.recipe.steps) == ("finetune", 130 * 1251)
    assert search.recipe.step.gating and not finetune.recipe.step.gating
    assert not search.remark and "random blocks within the same budget" in finetune.remark
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves(search) + leaves(finetune))
    names = forms.shapes(search.model)
    assert names["blocks.3.mixer.head_logits"] == (12, 9)
    small, large = (sum(leaf.size for leaf in leaves(x)) for x in (finetune, search))
    assert small < 0.7 * large


def test_what_is_fine_tuned_may_be_given():
    (finetune,) = trainings(config("deit_b", "stage=finetune"), IMAGENET)
    assert forms.shapes(finetune.model)["blocks.0.ffn.fc1.kernel"][1] < 3072
    assert "spvit_deit_base.json" in finetune.remark


def test_a_teacher_of_a_published_file_is_of_that_variant_and_is_not_downloaded():
    (finetune,) = trainings(config("deit_s", "distill"), IMAGENET)
    spec = VARIANTS["regnety_160"]
    shapes = forms.shapes(forms.build(spec, "dense"))
    assert len(jax.tree.leaves(finetune.teacher.state)) == len(shapes)
    kernels = {leaf.dtype.name for leaf in jax.tree.leaves(finetune.teacher.state)}
    assert kernels == {"bfloat16", "float32"}
    assert isinstance(spec, RegNetSpec) and "the teacher is a regnety_160" in finetune.remark


def test_without_a_file_the_dense_model_teaches_and_another_file_says_what_it_is(tmp_path):
    (finetune,) = trainings(config("quickstart"), Images(10_000, 2_000, 10))
    dense = forms.shapes(forms.build(VARIANTS["deit_fashion_mnist"], "dense"))
    assert len(jax.tree.leaves(finetune.teacher.state)) == len(dense)
    file = tmp_path / "mine.safetensors"  # no variant's name
    file.write_bytes(fetch("packaged:swin_fashion_mnist").read_bytes())
    changed = config("quickstart", "paper", teacher__checkpoint=str(file))
    (_, finetune) = trainings(changed, Images(10_000, 2_000, 10))
    assert str(file) in finetune.remark
    swin = forms.shapes(forms.build(VARIANTS["swin_fashion_mnist"], "dense"))
    assert len(jax.tree.leaves(finetune.teacher.state)) == len(swin) != len(dense)


def test_a_pretraining_is_of_the_dense_model():
    values = dataclasses.replace(config("quickstart"), stage="pretrain")
    (pretrain,) = trainings(values, Images(10_000, 2_000, 10))
    assert pretrain.name == "pretrain"
    assert forms.shapes(pretrain.model) == forms.shapes(
        forms.build(VARIANTS["deit_fashion_mnist"], "dense")
    )


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            dataclasses.replace(config("quickstart"), stage="evaluate"),
            ConfigError,
            "trains nothing",
        ),
        (config("quickstart", budget__macs=0.001), BudgetError, "budget.macs"),
        (config("deit_s", "stage=finetune", finetune__architecture="x"), ArchitectureError, "x"),
        (config("swin_t", "stage=finetune", finetune__architecture=DEIT), ArchitectureError, "12"),
        (
            config(
                "quickstart",
                finetune__distillation="features",
                teacher__checkpoint="packaged:swin_fashion_mnist",
            ),
            ConfigError,
            r"finetune\.distillation=features .*teacher\.checkpoint=packaged:swin",
        ),
        (config("quickstart", finetune__batch_size=20_000), DataError, "20000 images is more"),
    ],
)
def test_what_cannot_run_cannot_be_planned(values, error, message):
    with pytest.raises(error, match=message):
        list(trainings(values, Images(10_000, 2_000, 10)))
