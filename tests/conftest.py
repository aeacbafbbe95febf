"""What the tests share: quick compilation, its cache, and a look into traced programs."""

import importlib.util
import os
from pathlib import Path

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spvit_jax" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Most of the tests' time is compiling, which takes half as long without XLA's optimisations.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if "xla_backend" not in (_FLAGS := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {_QUICK}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from flax import nnx  # noqa: E402

from spvit_jax.convert import save  # noqa: E402
from spvit_jax.models import ViT, ViTSpec  # noqa: E402
from spvit_jax.planning.macs import macs  # noqa: E402
from spvit_jax.single_path.prune import form  # noqa: E402
from spvit_jax.sizes import sides  # noqa: E402
from spvit_jax.training.metrics import read_metrics  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Forgets compiled programs between modules: memory, and JAX's table of calls, are finite."""
    jax.clear_caches()


@pytest.fixture(scope="session")
def example():
    """``example(name)``: the module of that name in ``docs/examples``, which a page shows."""

    def module(name):
        file = Path(__file__).parents[1] / "docs" / "examples" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    return module


def _equations(jaxpr):
    """Every equation of a jaxpr and of those inside it, loops refused."""
    for equation in jaxpr.eqns:
        assert equation.primitive.name not in ("scan", "while", "cond"), equation
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _jaxpr(model, *arguments, **options):
    """That of a (possibly abstract) model's call."""
    graph, state = nnx.split(model)

    def call(state, *arguments):
        return nnx.merge(graph, state)(*arguments, **options)

    return jax.make_jaxpr(call)(state, *arguments).jaxpr


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """Fields of a config, by dotted name, for a dense model that compiles and runs quickly."""
    spec = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=7, image_size=28, classes=10)
    file = tmp_path_factory.mktemp("small") / "dense.safetensors"
    save(ViT(spec, rngs=nnx.Rngs(0)), file)
    return {"model.variant": "", "model.checkpoint": str(file), "model.heads": 2}


@pytest.fixture(scope="session")
def small(small_model):
    """The same with the names that Python's arguments may have."""
    return {name.replace(".", "__"): value for name, value in small_model.items()}


@pytest.fixture(scope="session")
def equations():
    """``equations(model, *arguments)``: those of a (possibly abstract) model's traced call."""
    return lambda *arguments, **options: list(_equations(_jaxpr(*arguments, **options)))


@pytest.fixture(scope="session")
def assert_same_run():
    """``assert_same_run(workdir, whole)``: both hold the same results, bit for bit.

    Of the metrics, the times do not count.
    """
    files = ("architecture", "dense", "decided", "pruned")
    times = {"step_seconds": 0, "input_wait": 0}

    def check(workdir, whole):
        for name in (*(f"{name}.json" for name in files), "pruned.safetensors"):
            assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
        stages = [file.parent.relative_to(whole) for file in whole.glob("**/metrics.jsonl")]
        assert stages
        for stage in stages:
            mine, other = (read_metrics(folder / stage) for folder in (workdir, whole))
            assert [row | times for row in mine] == [row | times for row in other], stage

    return check


@pytest.fixture(scope="session")
def run():
    """``run(model, *arguments, key=None, **options)``: the call, compiled; statistics change."""

    def compiled(model, *arguments, key=None, **options):
        graph, state = nnx.split(model)

        @jax.jit
        def call(state, key, *arguments):
            inner = nnx.merge(graph, state)
            return inner(*arguments, key=key, **options), nnx.state(inner)

        result, state = call(state, key, *arguments)
        nnx.update(model, state)
        return result

    return compiled


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def traced_macs():
    """``traced_macs(model, *arguments)``: multiply-accumulates of its products, exactly."""
    return lambda *arguments, **options: macs(_jaxpr(*arguments, **options))


@pytest.fixture(scope="session")
def macs_per_image(traced_macs):
    """``macs_per_image(model)``: those of its traced call that each image of a batch takes.

    All of them do, but in the shared form, which mixes its kernels once a call.
    """

    def count(model):
        shape = (*sides(model.spec.image_size), 3)
        batches = (jax.ShapeDtypeStruct((n, *shape), jnp.float32) for n in (1, 2))
        one, two = (traced_macs(model, batch) for batch in batches)
        assert form(model) == "shared" or two == 2 * one
        return two - one

    return count
