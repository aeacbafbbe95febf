"""Exact MACs: of operations, of gates, and of the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import VARIANTS, Geometry, ViT
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
    block = Geometry(width=96, heads=3, hidden=384, grid=56, windows=64)  # of 7 x 7 tokens
    assert op_macs(block)["msa"] == 56**2 // 49 * (4 * 49 * 96**2 + 2 * 49**2 * 96)


@pytest.mark.parametrize("seed", range(3))
def test_gates_cost_what_their_architecture_costs(seed, spec):
    logits = random_logits(spec, seed)
    gates = decide(jax.tree.map(jnp.asarray, logits))
    found = from_gates(gates)
    exact = found.macs(spec)
    assert isinstance(exact, int)
    assert int(cost(spec, gates)) == exact  # below 2**24: float32 is exact as well
    names = op_macs(spec.blocks[0])
    by_hand = spec.fixed_macs + 4 * 2 * 24 * 17
    by_hand += sum(names[op] for op in found.ops) + 2 * 16 * 24 * sum(found.widths)
    assert exact == by_hand


def test_all_gates_open_cost_the_dense_model():
    spec = VARIANTS["deit_base_patch16_224"]
    everything = Architecture(("msa",) * 12, (3072,) * 12)
    assert everything.macs(spec) == dense_macs(spec) == 17_510_836_224
    norm_skip = Architecture(("norm_skip",) * 12, (3072,) * 12)
    assert norm_skip.macs(spec) == Architecture(("skip",) * 12, (3072,) * 12).macs(spec)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("distilled", [False, True])
def test_cost_is_what_the_folded_program_multiplies(
    seed, distilled, spec, random_architecture, traced_macs
):
    """But for the norms, which are no products, and the class tokens' FFN, which it leaves out."""
    spec = dataclasses.replace(spec, distilled=distilled)
    found = random_architecture(seed)
    assert set(found.ops) == {"skip", "conv1x1", "conv3x3", "msa"}
    folded = nnx.eval_shape(lambda: fold(prune(ViT(spec, rngs=nnx.Rngs(0)), found)))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    norms = sum(2 * block.width * block.tokens for block in spec.blocks)
    assert norms == 4 * 2 * 24 * (16 + spec.prefix)
    class_tokens = class_token_macs(spec, found.widths)
    assert class_tokens == 2 * spec.prefix * 24 * sum(found.widths)
    assert traced_macs(folded, image) == found.macs(spec) - norms + class_tokens
