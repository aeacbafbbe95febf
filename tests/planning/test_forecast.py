import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget, Config, Model, Search
from spvit_jax.convert import forms
from spvit_jax.models import ViTSpec
from spvit_jax.planning.chips import SLICES, Target
from spvit_jax.planning.forecast import Forecast, Memory, forecast
from spvit_jax.planning.trainings import Images, Planned
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.sharding import make_mesh
from spvit_jax.training.teacher import freeze

SPEC = ViTSpec(  # whose one block computes all tokens
    width=64,
    depth=1,
    heads=2,
    hidden=256,
    patch_size=8,
    image_size=(16, 64),
    classes=7,
    class_token=False,
    pool="norm_average",
)
IMAGES = Images(640, 100, 7)
TPUS = os.environ.get("SPVIT_LIBTPU")  # a folder, of pip install --no-deps --target FOLDER libtpu
for_tpus = pytest.mark.skipif(not TPUS, reason="needs SPVIT_LIBTPU, a folder with libtpu in it")


def planned(accumulation=1, distil=True):
    """A search with everything there is to plan for."""
    search = Search(
        batch_size=64,
        accumulation=accumulation,
        ema_decay=0.9,
        distillation="soft" if distil else "none",
    )
    config = Config(model=Model(variant=""), search=search, eval_every=0.3)
    teacher = None
    if distil:
        graph, state = nnx.split(forms.build(SPEC, "dense"))
        normalise = Normalise((0.5,) * 3, (0.5,) * 3)
        teacher = freeze(
            nnx.merge(graph, jax.tree.map(lambda x: jnp.ones(x.shape), state)), normalise
        )
    gating = Gating.of(search, Budget(macs=0.5), SPEC)
    recipe = Recipe.of(config, search, IMAGES.train, IMAGES.classes, gating=gating)
    return config, Planned("search", recipe, forms.build(SPEC, "supernet"), teacher, "")


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_step_is_measured_by_what_it_is_given_and_compiled_to():
    config, one = planned()
    found = forecast(one, config, IMAGES, make_mesh())
    state = jax.eval_shape(one.recipe.initial, one.model)
    assert found.memory.state >= size(state) + size(one.teacher.state)
    assert found.memory.state < 1.02 * (size(state) + size(one.teacher.state))
    assert found.memory.batches == 3 * 64 * (16 * 64 * 3 + 4)
    assert found.memory.temporary > 1e6
    assert (found.batch_size, found.steps, found.evaluations) == (64, 10, 4)
    assert not found.sent


def test_products_are_most_of_what_a_compiled_step_computes():
    """A bound from the compiler's own count, which has elementwise work in it as well."""
    config, one = planned(distil=False)
    counted = []
    compile_ = jax.stages.Lowered.compile
    with pytest.MonkeyPatch.context() as patch:

        def compiled(self, *arguments, **options):
            result = compile_(self, *arguments, **options)
            counted.append(result.cost_analysis()["flops"])
            return result

        patch.setattr(jax.stages.Lowered, "compile", compiled)
        found = forecast(one, config, IMAGES, make_mesh())
    assert 0.6 < 2 * found.macs / counted[0] < 1


def test_a_program_that_does_not_fit_is_a_finding(monkeypatch):
    def refuse(self, *arguments, **options):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm.\n"
            "Largest program allocations"
        )

    config, one = planned(distil=False)
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    found = forecast(one, config, IMAGES, make_mesh())
    assert found.memory is None and not found.sent and found.macs > 0
    assert found.refusal == "Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm."


def test_another_error_is_not_taken_for_one(monkeypatch):
    def refuse(self, *arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    config, one = planned(distil=False)
    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        forecast(one, config, IMAGES, make_mesh())


def test_time_is_two_operations_a_mac():
    memory = Memory(1, 2, 3, 4)
    found = Forecast("search", 64, 1000, 10**12, 3, 10**13, memory, "", {})
    assert memory.total == 10
    assert found.step_seconds(4e12) == 0.5
    assert found.hours(4e12) == (1000 * 0.5 + 3 * 5) / 3600


def elsewhere(chip, count, fsdp=1, accumulation=1, **settings):
    """A forecast for other devices, by another process."""
    command = [sys.executable, __file__, chip, *map(str, (count, fsdp, accumulation))]
    run = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def eight():
    return {fsdp: elsewhere("h100", 8, fsdp) for fsdp in (1, 8)}


def test_devices_that_are_not_there_share_the_batch_and_the_weights(eight):
    config, one = planned()
    alone = forecast(one, config, IMAGES, make_mesh())
    for fsdp, found in eight.items():
        assert found["macs"] == alone.macs
        assert found["memory"]["batches"] * 8 == alone.memory.batches, fsdp
        assert found["memory"]["temporary"] < alone.memory.temporary / 2
    assert eight[1]["memory"]["state"] == alone.memory.state
    assert eight[8]["memory"]["state"] < 0.6 * alone.memory.state
    gradient = size(nnx.state(one.model, nnx.Param)) + size(one.recipe.step.gating.initial())
    least = 2 * 7 * gradient / 8  # each gradient is summed once, some in parts; batch norms as well
    assert least < eight[1]["sent"]["all-reduce"] < 1.25 * least
    assert eight[8]["sent"]["all-gather"] > 7 / 8 * 0.5 * gradient  # of divided weights
    assert "all-gather" not in eight[1]["sent"]


def test_micro_batches_need_less_memory(eight):
    found = elsewhere("h100", 8, accumulation=4)
    # Kernels of convolutions are mixed in each.
    assert eight[1]["macs"] < found["macs"] < 1.01 * eight[1]["macs"]
    assert found["memory"]["temporary"] < 0.75 * eight[1]["memory"]["temporary"]
    assert found["sent"]["all-reduce"] > 3 * eight[1]["sent"]["all-reduce"]  # in each


@for_tpus
def test_tpus_compile_their_own_program(eight):
    found = elsewhere("v5e", 8, PYTHONPATH=TPUS)
    assert found["compiler"].startswith("TPU's own compiler, libtpu")
    assert found["macs"] == eight[1]["macs"]
    assert found["memory"]["program"] > 0 and found["memory"]["state"] >= 1e5
    assert found["sent"]["all-reduce"] > 0


@for_tpus
@pytest.mark.parametrize("chip", SLICES)
def test_every_slice_has_the_devices_it_is_named_after(chip):
    run = subprocess.run(
        [sys.executable, __file__, chip],
        env=os.environ | {"PYTHONPATH": TPUS},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for count, devices, kind in json.loads(run.stdout):
        assert count == devices and kind.startswith("TPU v")


if __name__ == "__main__":
    chip, *rest = sys.argv[1:]
    if not rest:
        sizes = [int(np.prod([int(side) for side in shape.split("x")])) for shape in SLICES[chip]]
        slices = {count: Target.of(chip, count).devices for count in sizes}
        print(json.dumps([(n, len(found), found[0].device_kind) for n, found in slices.items()]))
        sys.exit()
    count, fsdp, accumulation = map(int, rest)
    target = Target.of(chip, count)
    config, one = planned(accumulation)
    found = forecast(one, config, IMAGES, make_mesh(fsdp, target.devices))
    print(json.dumps(dataclasses.asdict(found) | {"compiler": target.compiler}))
