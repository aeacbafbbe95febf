import pytest

from spvit_jax.config import Config, Model, Search, Sharding
from spvit_jax.planning.chips import CHIPS, Target
from spvit_jax.planning.forecast import Forecast, Memory
from spvit_jax.planning.outlook import Outlook
from spvit_jax.planning.trainings import Images

SEARCH = Forecast(
    name="search",
    batch_size=1024,
    steps=25_020,
    macs=54_500_000_000_000,
    evaluations=20,
    evaluation_macs=890_000_000_000_000,
    memory=Memory(1_040_000_000, 7_226_880, 1_640_000_000, 331_000_000),
    refusal="",
    sent={"all-reduce": 374_000_000, "collective-permute": 9_700_000},
)
TUNING = Forecast("finetune", 1024, 100, 10**12, 1, 0, None, "Used 20G of 15.75G", {})


def outlook(*forecasts, chip="v5e", exact=True, dtype="bfloat16"):
    config = Config(
        model=Model(dtype=dtype), search=Search(accumulation=2), sharding=Sharding(fsdp=4)
    )
    target = Target(CHIPS[chip], [None] * 64, "a compiler", exact)
    return Outlook(config, target, Images(1_281_167, 50_000, 1000), 0.5, forecasts)


def test_a_column_a_training_with_what_it_takes():
    lines = outlook(SEARCH, TUNING).table().splitlines()
    cells = {line[:29].strip(): line[29:].split() for line in lines}
    assert cells["images a step"] == ["1,024", "1,024"]
    assert cells["steps"] == ["25,020", "100"]
    assert cells["MACs a step (T)"] == ["54.5", "1"]
    assert cells["memory of a device (GB)"] == ["3.02", "of", "16", "too", "much"]
    assert cells["weights, optimiser, teacher"] == ["1.04", "–"]
    assert cells["sent by a device, a step (MB)"] == ["384", "–"]
    assert cells["collective-permute"] == ["9.7", "–"]
    seconds = 2 * 54.5e12 / (0.5 * 197e12 * 64)
    assert cells["ms a step"][0] == f"{1e3 * seconds:.3g}"
    assert cells["images/s"][0] == f"{1024 / seconds:,.0f}"
    hours = (25_020 * seconds + 20 * 2 * 890e12 / (0.5 * 197e12 * 64)) / 3600
    assert cells["hours"][0] == f"{hours:.3g}"
    assert cells["device-hours"][0] == f"{64 * hours:.3g}"


def test_what_the_figures_rest_on_is_said():
    text = outlook(SEARCH).assumptions(["the teacher is a copy"])
    assert "50% of 197 TFLOP/s" in text and "stated, not measured" in text
    assert "a compiler; sharding.fsdp=4" in text and "- the teacher is a copy." in text
    assert "1,281,167 images to train on, 50,000" in text
    rate = 1024 / (2 * 54.5e12 / (0.5 * 197e12 * 64)) / 16
    assert f"each of 16 hosts decodes {rate:,.0f} images/s" in text
    assert "DOES NOT FIT" not in text and "for CPUs" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_does_not_fit_is_said_with_ways_out():
    large = Memory(9 * 10**9, 10**9, 6 * 10**9, 1)
    assert outlook(SEARCH).fits and not outlook(SEARCH, TUNING).fits
    text = " ".join(outlook(TUNING).assumptions([]).split())
    assert (
        "finetune DOES NOT FIT (Used 20G of 15.75G): try --config.finetune.accumulation=2" in text
    )
    one = Forecast("search", 1024, 1, 1, 1, 1, large, "", {})
    text = " ".join(outlook(one).assumptions([]).split())
    assert (
        not outlook(one).fits and "search DOES NOT FIT: try --config.search.accumulation=4" in text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact": False}, "not for a TPU v5e; pip install 'jax[tpu]' for its own."),
        ({"exact": False, "chip": "h100"}, "not for a NVIDIA H100 SXM."),
        ({"dtype": "float32"}, "--config.model.dtype=bfloat16"),
    ],
)
def test_what_makes_figures_doubtful_is_said(changes, message):
    assert message in " ".join(outlook(SEARCH, **changes).assumptions([]).split())
