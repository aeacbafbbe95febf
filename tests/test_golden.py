"""Numbers of the released PyTorch code, reproduced: every file of the golden folder.

The files were computed in float64 and stored in float32. They are replayed in float32 and in
float64, and each array has to be within 1e-5, respectively 1e-6, of the largest magnitude in the
reference array. Three things need a word more:

- Some gradients are zero but for rounding (a key's bias, a bias in front of a batch norm): in the
  reference below a billionth of the largest in the model. Ours have to be zero on that scale.
- AdamW turns the rounding noise of those same gradients into steps as large as any other. After
  five steps in float32 these biases, and the running means that follow them, may have walked by
  a learning rate a step; in float64 they too are within 1e-6.
- A released Swin searches its 3x3 kernels inside windows, ours and its own pruned form on the whole
  map. The recorded step chooses none, so that only gradients which see the unused branch differ:
  those of the kernel gates and of that branch's batch norm. They are left out, and nothing else.

``SPVIT_GOLDEN`` names another folder of such files.
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.config import Training
from spvit_jax.convert import Facts, forms, released_from_state
from spvit_jax.convert.families import FAMILIES, ignored
from spvit_jax.convert.tables import apply
from spvit_jax.models import SwinSpec
from spvit_jax.single_path import prices
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.budget import penalty as budget_penalty
from spvit_jax.single_path.gates import decide, sample
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, form
from spvit_jax.single_path.space import Space
from spvit_jax.training.losses import cross_entropy, smooth_targets
from spvit_jax.training.optim import optimizer

FOLDER = Path(os.environ.get("SPVIT_GOLDEN") or Path(__file__).parent / "golden")
FILES = sorted(FOLDER.glob("*.npz"))
DENSE = ("vit_", "regnety_", "swin_dense_", "swin_timm_")
WINDOWED = re.compile(r"gates\.\d+\.op|blocks\.\d+\.mixer\.parts\.conv3x3\.(scale|bias)")
TOLERANCES = {"float32": 1e-5, "float64": 1e-6}
NOISE = ("mixer.attention.qk.bias", "mixer.attention.v.bias", "conv1x1.mean", "conv3x3.mean")


@pytest.fixture(params=TOLERANCES)
def tolerance(request):
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield TOLERANCES[request.param]


class Golden:
    """A file: its arrays by prefix, its metadata, and the model in it."""

    def __init__(self, path):
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta = json.loads(str(self.arrays.pop("meta")))
        self.config = self.meta.get("cfg", self.meta)
        heads = self.config.get("num_heads")
        heads = heads if isinstance(heads, int) else None  # Swin's tables tell
        self.model, self.gate_logits = released_from_state(self.under("state/"), Facts(heads=heads))
        self.form, self.architecture = form(self.model), self.model.architecture
        self.space = Space(getattr(self.model.spec, "blocks", ()))

    def __getitem__(self, name):
        return self.arrays[name]

    def under(self, prefix):
        arrays = self.arrays.items()
        return {name.removeprefix(prefix): v for name, v in arrays if name.startswith(prefix)}

    def images(self, name="input"):
        return jnp.asarray(self[name].transpose(0, 2, 3, 1), float)

    def uniforms(self, prefix):
        def block(i):
            parts = {"op": self[f"{prefix}/{i}/attention"], "ffn": self[f"{prefix}/{i}/ffn"]}
            return {axis: jnp.asarray(part, float) for axis, part in parts.items()}

        return tuple(block(i) for i in range(len(self.model.spec.blocks)))

    def reference(self, prefix, ours):
        """The reference arrays under ``prefix``, in our names and layout.

        The loader's table is linear, so that it moves gradients as it moves weights.
        """
        spec = self.model.spec
        ops = () if self.form == "supernet" else self.architecture.ops
        table = FAMILIES[type(spec)].table(self.form, spec, ops)
        rules = [rule for rule in table if set(rule.targets) <= set(ours)]
        shapes = {name: value.shape for name, value in ours.items()}
        return apply(rules, self.under(prefix), shapes, ignored)


def test_the_folder_holds_golden_files():
    assert FILES, f"no .npz files in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path, tolerance):
    family, *_, kind = path.stem.split("_")
    if path.stem.startswith(DENSE):
        check_logits(Golden(path), tolerance)
    else:
        checks = {
            "search": check_search,
            "trajectory": check_trajectory,
            "finetune": check_finetune,
            "folded": check_folded,
        }
        known = family in ("deit", "swin") and kind in checks
        assert known, f"no test replays {path.name}"
        checks[kind](Golden(path), tolerance, path)


def check_logits(golden, tolerance):
    logits = golden.model(golden.images())
    close(logits, golden["eval/logits"], tolerance, "eval/logits")


def check_search(golden, tolerance, path):
    spec, meta = golden.model.spec, golden.meta
    logits = golden.model(golden.images(), decide(golden.space, golden.gate_logits))
    close(logits, golden["eval/logits"], tolerance, "eval/logits")
    assert golden.architecture.published_macs(spec) == meta["eval_macs"]["total"]
    levels = [int(sum(row)) for row in meta["gates"]]
    assert [("skip", "conv1x1", "conv3x3", "msa")[n] for n in levels] == [*golden.architecture.ops]

    step = search_step(golden, golden.images(), golden["labels"], golden.uniforms("train/uniform"))
    close(step.logits, golden["train/logits"], tolerance, "train/logits")
    close(step.losses[0], meta["train_cross_entropy"], tolerance, "cross-entropy")
    close(step.losses[1], meta["train_budget_loss"], tolerance, "budget loss")
    close(step.losses[1], meta["eval_budget_loss"], tolerance, "budget loss")
    gradients = named(step.gradient["params"]) | named_gates(step.gradient["gates"])
    windowed = WINDOWED if isinstance(spec, SwinSpec) else None
    expected = golden.reference("train/grad/", gradients)
    close_gradients(gradients, expected, tolerance, without=windowed)
    if windowed:
        return  # no more is recorded
    budget = named_gates(jax.grad(lambda gates: penalty(golden, gates))(golden.gate_logits))
    close_gradients(budget, golden.reference("train/budget_grad/", budget), tolerance)

    # The reference ran the step's forward pass twice before it stored the statistics.
    nnx.update(golden.model, step.stats)
    again = search_step(golden, golden.images(), golden["labels"], golden.uniforms("train/uniform"))
    stats = named(again.stats)
    for name, value in golden.reference("train/after/", stats).items():
        close(stats[name], value, tolerance, name)


def check_trajectory(golden, tolerance, path):
    meta = golden.meta
    assert (meta["eps"], meta["betas"]) == (1e-8, [0.9, 0.999])
    training = Training(weight_decay=meta["weight_decay"])
    adamw = optimizer(training, meta["lr"], meta["gate_lr"])
    trained = {"params": nnx.state(golden.model, nnx.Param), "gates": golden.gate_logits}
    state = adamw.init(trained)
    for i, losses in enumerate(meta["losses"]):
        batch = golden.images(f"input/{i}"), golden[f"labels/{i}"], golden.uniforms(f"uniform/{i}")
        step = search_step(golden, *batch)
        close(step.losses[0], losses[0], tolerance, f"cross-entropy of step {i}")
        close(step.losses[1], losses[1], tolerance, f"budget loss of step {i}")
        trained = {"params": nnx.state(golden.model, nnx.Param), "gates": golden.gate_logits}
        updates, state = adamw.update(step.gradient, state, trained)
        trained = optax.apply_updates(trained, updates)
        golden.gate_logits = trained["gates"]
        nnx.update(golden.model, trained["params"], step.stats)
    after = forms.variables(golden.model) | named_gates(golden.gate_logits)
    walked = len(meta["losses"]) * meta["lr"] if tolerance == TOLERANCES["float32"] else 0
    for name, value in golden.reference("after/", after).items():
        slack = walked if name.endswith(NOISE) else 0
        close(after[name], value, tolerance, name, slack=slack)


def check_finetune(golden, tolerance, path):
    check_decided(golden)
    check_logits(golden, tolerance)
    graph, params, stats = nnx.split(golden.model, nnx.Param, nnx.BatchStat)

    @jax.jit
    def loss(params):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(golden.images(), train=True)
        return cross_entropy(logits, smooth_targets(golden["labels"], logits.shape[-1])), logits

    (value, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    close(value, golden.meta["train_cross_entropy"], tolerance, "cross-entropy")
    close(logits, golden["train/logits"], tolerance, "train/logits")
    ours = named(gradient)
    close_gradients(ours, golden.reference("train/grad/", ours), tolerance)


def check_folded(golden, tolerance, path):
    check_logits(golden, tolerance)
    partner = path.with_name(path.name.replace("_folded", "_finetune"))
    if partner.exists():
        shared = Golden(partner)
        check_decided(shared)
        assert golden.architecture == shared.architecture
        ours, theirs = forms.variables(fold(shared.model)), forms.variables(golden.model)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            close(ours[name], value, tolerance, name)


def check_decided(golden):
    """The architecture read from names and shapes is the one the reference recorded."""
    ops = ("norm_skip", "conv1x1", "conv3x3", "msa")
    stages = [np.reshape(rows, (-1, 3)) for rows in golden.meta["msa_indicators"]]  # or blocks
    rows = np.concatenate(stages)
    assert [ops[int(sum(row))] for row in rows] == [*golden.architecture.ops]
    blocks = golden.model.spec.blocks
    indicators = [golden[f"ffn_indicators/{i}"] for i in range(len(blocks))]
    assert [int(kept.sum()) for kept in indicators] == [*golden.architecture.widths]
    assert [kept.size for kept in indicators] == [block.hidden for block in blocks]
    assert count_parameters(golden.model) == golden.meta["params"]


def penalty(golden, gates):
    """The released ``lambda (F* - F)^2``, F in GMACs, as ours: relative to the target."""
    config, space = golden.config, golden.space
    target = config["target_gmacs"]
    budget = Budget(prices.published_macs(golden.model.spec, space.ops), 1e9 * target)
    return budget_penalty(space, gates, (budget,), config["loss_lambda"] * target**2)


def search_step(golden, images, labels, uniforms):
    """Gradient, losses, logits and new statistics of one search step; the model is left alone."""
    graph, params, stats = nnx.split(golden.model, nnx.Param, nnx.BatchStat)
    if not hasattr(golden, "compiled"):

        def loss(trained, stats, images, labels, uniforms):
            model = nnx.merge(graph, trained["params"], stats, copy=True)
            logits = model(
                images, sample(golden.space, trained["gates"], uniforms=uniforms), train=True
            )
            losses = (
                cross_entropy(logits, smooth_targets(labels, logits.shape[-1])),
                penalty(golden, trained["gates"]),
            )
            return sum(losses), (losses, logits, nnx.state(model, nnx.BatchStat))

        golden.compiled = jax.jit(jax.grad(loss, has_aux=True))
    trained = {"params": params, "gates": golden.gate_logits}
    gradient, aux = golden.compiled(trained, stats, images, labels, uniforms)
    return SimpleNamespace(gradient=gradient, losses=aux[0], logits=aux[1], stats=aux[2])


def named(state):
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def named_gates(gates):
    return {f"gates.{i}.{axis}": x for i, block in enumerate(gates) for axis, x in block.items()}


def close_gradients(found, expected, tolerance, without=None):
    assert found.keys() == expected.keys()
    if without:
        expected = {n: value for n, value in expected.items() if not without.fullmatch(n)}
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        zero = np.abs(value).max() < 1e-9 * largest
        scale = {"least": largest} if zero else {}
        close(found[name], value, tolerance, f"gradient of {name}", **scale)


def close(found, expected, tolerance, name, *, least=1e-30, slack=0.0):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, name
    error, scale = np.abs(found - expected).max(), max(np.abs(expected).max(), least)
    assert error <= tolerance * scale + slack, f"{name}: off by {error / scale:.1e} of {scale:.2e}"
