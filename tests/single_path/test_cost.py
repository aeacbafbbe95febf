"""Exact MACs: of operations, of gates, and of the traced program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, VARIANTS, Geometry
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.cost import class_token_macs, cost, dense_macs, op_macs, unit_macs
from spvit_jax.single_path.gates import BlockGates, decide
from spvit_jax.single_path.prune import fold, prune


def random_logits(spec, seed):
    rng = np.random.default_rng(seed)
    return tuple(
        BlockGates(rng.normal(0.5, 1, 3), rng.normal(0, 1, block.hidden)) for block in spec.blocks
    )


def test_operations_of_a_vit_block():
    block = Geometry(width=192, heads=3, hidden=768, grid=14, prefix=1)
    assert op_macs(block) == {
        "skip": 0,
        "conv1x1": 2 * 192 * 64 * 196,
        "conv3x3": (9 * 192 * 64 + 64 * 192) * 196,
        "msa": 4 * 197 * 192**2 + 2 * 192 * 197**2,
    }
    assert unit_macs(block) == 2 * 196 * 192


def test_operations_of_a_block_with_windows():
    block = Geometry(width=96, heads=3, hidden=384, grid=56, window=7)  # 64 of them
    assert op_macs(block)["msa"] == 56**2 // 49 * (4 * 49 * 96**2 + 2 * 49**2 * 96)


@pytest.mark.parametrize("seed", range(3))
def test_gates_cost_what_their_architecture_costs(seed, spec):
    logits = random_logits(spec, seed)
    gates = decide(jax.tree.map(jnp.asarray, logits))
    found = from_gates(gates)
    exact = found.macs(spec)
    assert isinstance(exact, int)
    assert int(cost(spec, gates)) == exact  # below 2**24: float32 is exact as well
    by_hand = spec.fixed_macs
    for block, op, width in zip(spec.blocks, found.ops, found.widths, strict=True):
        norms = 2 * block.width * (block.prefix + block.grid**2)
        by_hand += norms + op_macs(block)[op] + 2 * block.grid**2 * block.width * width
    assert exact == by_hand


def test_all_gates_open_cost_the_dense_model():
    spec = VARIANTS["deit_base_patch16_224"]
    everything = Architecture(("msa",) * 12, (3072,) * 12)
    assert everything.macs(spec) == dense_macs(spec) == 17_510_836_224
    norm_skip = Architecture(("norm_skip",) * 12, (3072,) * 12)
    assert norm_skip.macs(spec) == Architecture(("skip",) * 12, (3072,) * 12).macs(spec)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", ["vit", "distilled", "average", "swin"], indirect=True)
def test_cost_is_what_the_folded_program_multiplies(
    seed, spec, random_architecture, traced_macs, norm_macs
):
    """But for the norms, which are no products, and the class tokens' FFN, which it leaves out."""
    found = random_architecture(seed)
    assert set(found.ops) == {"skip", "conv1x1", "conv3x3", "msa"}
    network = MODELS[type(spec)]
    folded = nnx.eval_shape(lambda: fold(prune(network(spec, rngs=nnx.Rngs(0)), found)))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    class_tokens = class_token_macs(spec, found.widths)
    assert class_tokens == 2 * spec.blocks[0].prefix * 24 * sum(found.widths)
    assert traced_macs(folded, image) == found.macs(spec) - norm_macs(spec) + class_tokens
