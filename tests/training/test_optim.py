import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.config import Training
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.optim import decay_mask, optimizer, schedule

SPEC = ViTSpec(width=8, depth=1, heads=2, hidden=16, patch_size=4, image_size=8, classes=3)


def rates(training, steps=100, per_epoch=10):
    rate = schedule(training, steps, per_epoch)
    return np.array([float(rate(step)) for step in range(steps + 1)])


def test_constant():
    np.testing.assert_allclose(rates(Training(learning_rate=0.5)), 0.5)


def test_cosine_ends_at_its_final_rate():
    training = Training(learning_rate=0.5, schedule="cosine", final_learning_rate=0.1)
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * step / 100)) / 2 for step in range(101)]
    np.testing.assert_allclose(rates(training), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warm_up_is_linear_from_0_and_the_rest_follows(kind):
    training = Training(learning_rate=0.5, schedule=kind, final_learning_rate=0.1, warmup_epochs=2)
    found = rates(training)
    np.testing.assert_allclose(found[:21], np.arange(21) / 20 * 0.5, rtol=1e-5)
    assert found[-1] == pytest.approx(0.1 if kind == "cosine" else 0.5)
    if kind == "cosine":
        assert found[60] == pytest.approx(0.3)  # half of what follows the warm-up
        assert (np.diff(found[20:]) < 0).all()


def test_a_warm_up_longer_than_the_run_is_still_linear():
    training = Training(learning_rate=0.5, schedule="cosine", warmup_epochs=20)
    np.testing.assert_allclose(rates(training), np.arange(101) / 200 * 0.5, rtol=1e-5)


def test_what_decays():
    """As the released code: nothing of one axis, no tokens, no positions; head logits do."""
    params = nnx.state(supernet(ViT(SPEC, rngs=nnx.Rngs(0))), nnx.Param)
    mask = nnx.to_flat_state(decay_mask(params))
    decayed = {".".join(map(str, path)) for path, leaf in mask if leaf.get_value()}
    block = "blocks.0."
    assert decayed == {
        "patch_embed.kernel",
        "head.kernel",
        f"{block}mixer.attention.qk.kernel",
        f"{block}mixer.attention.v.kernel",
        f"{block}mixer.attention.out.kernel",
        f"{block}mixer.head_logits",
        f"{block}ffn.fc1.kernel",
        f"{block}ffn.fc2.kernel",
    }


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_both_optimisers_are_torchs_adamw(clip_norm):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"kernel": (4, 3), "bias": (3,), "pos_embed": (5, 3), "gate": (6,)}
    start = {name: rng.standard_normal(shape).astype("f4") for name, shape in start.items()}
    steps = [
        {name: rng.standard_normal(x.shape).astype("f4") for name, x in start.items()}
        for _ in range(5)
    ]
    training = Training(
        learning_rate=0.03, schedule="cosine", final_learning_rate=0.01, weight_decay=0.3,
        clip_norm=clip_norm,
    )  # fmt: skip
    rate = schedule(training, len(steps), 1)

    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    weights = [theirs[name] for name in ("kernel", "bias", "pos_embed")]
    adamw = torch.optim.AdamW(
        [{"params": weights[:1], "weight_decay": 0.3}, {"params": weights[1:], "weight_decay": 0}]
    )
    gates = torch.optim.AdamW([theirs["gate"]], lr=0.2, weight_decay=0)
    for i, gradients in enumerate(steps):
        for name, value in theirs.items():
            value.grad = torch.tensor(gradients[name])
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(weights, clip_norm)
        for group in adamw.param_groups:
            group["lr"] = float(rate(i))
        adamw.step()
        gates.step()

    def split(values):
        values = {name: jnp.asarray(x) for name, x in values.items()}
        return {"gates": values.pop("gate"), "params": values}

    ours, adam = split(start), optimizer(training, rate, 0.2)
    state = adam.init(ours)
    for gradients in steps:
        updates, state = jax.jit(adam.update)(split(gradients), state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, value in {**ours["params"], "gate": ours["gates"]}.items():
        np.testing.assert_allclose(value, theirs[name].detach(), rtol=2e-5, atol=1e-6, err_msg=name)
