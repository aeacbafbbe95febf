"""What compiled programs send. Run as a program, it compiles for 8 devices and prints it."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spvit_jax.planning.collectives import sent

TPU = """
HloModule jit_step, is_scheduled=true, num_partitions=64

%add.1 (x.1: bf16[], y.1: bf16[]) -> bf16[] {
  %x.1 = bf16[]{:T(256)} parameter(0)
  %y.1 = bf16[]{:T(256)} parameter(1)
  ROOT %sum.1 = bf16[]{:T(256)} add(%x.1, %y.1)
}

%body.1 (state: (s32[], f32[100])) -> (s32[], f32[100]) {
  %state = (s32[]{:T(128)}, f32[100]{0:T(128)S(1)}) parameter(0)
  %part.1 = f32[100]{0:T(128)S(1)} get-tuple-element(%state), index=1
  %all-reduce.9 = f32[100]{0:T(128)} all-reduce(%part.1), replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%add.1
  ROOT %out.1 = (s32[]{:T(128)}, f32[100]{0:T(128)S(1)}) tuple(%index.1, %all-reduce.9)
}

%wrapped (p.1: bf16[8,4]) -> bf16[64,4] {
  %p.1 = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gathered = bf16[64,4]{1,0:T(8,128)(2,1)} all-gather(%p.1), \
replica_groups=[8,8]<=[64], dimensions={0}
}

ENTRY %main (a.1: f32[12,64], /*index=5*/b.1: bf16[768]) -> f32[12,64] {
  %a.1 = f32[12,64]{1,0:T(8,128)S(1)} parameter(0)
  %b.1 = bf16[768]{0:T(1024)(128)(2,1)S(1)} parameter(1)
  %c.1 = pred[100]{0} parameter(2)
  %all-reduce.1 = (f32[12,64]{1,0:T(8,128)S(1)}, /*index=1*/bf16[768]{0:T(1024)(2,1)}) \
all-reduce(%a.1, /*index=1*/%b.1), replica_groups=mesh['axis_0'=8,'axis_1'=2,'axis_2'=4] \
{'axis_0','axis_2'}, use_global_device_ids=true, to_apply=%add.1, backend_config={"x":[]}
  %start = (f32[12,64]{1,0}, f32[12,64]{1,0}, u32[], u32[]) collective-permute-start(%a.1), \
source_target_pairs={{0,1},{1,0}}
  %done = f32[12,64]{1,0:T(8,128)} collective-permute-done(%start)
  %scattered = f32[12,8]{1,0} reduce-scatter(%a.1), replica_groups={}, to_apply=%add.1
  %exchanged = pred[100]{0} all-to-all(%c.1), replica_groups={{0,1}}, dimensions={0}
  %w = (s32[], f32[100]{0}) while(%t), condition=%cond.1, body=%body.1
  %async = ((bf16[8,4]{1,0}), bf16[64,4]{1,0}) async-start(%p.9), calls=%wrapped
  ROOT %r = f32[12,64]{1,0} copy(%done)
}
"""


def test_every_kind_is_found_with_its_operands_and_its_group():
    assert sent(TPU, devices=64, loops=3) == {
        "all-reduce": 2 * 31 * (12 * 64 * 4 + 768 * 2) // 32 + 3 * (2 * 3 * 400 // 4),
        "all-gather": 7 * 8 * 4 * 2,
        "collective-permute": 12 * 64 * 4,
        "reduce-scatter": 63 * 12 * 64 * 4 // 64,
        "all-to-all": 50,
    }


def test_a_program_of_one_device_sends_nothing():
    assert sent(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text(), 1) == {}


@pytest.fixture(scope="module")
def compiled():
    settings = {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, __file__]
    run = subprocess.run(command, env=os.environ | settings, capture_output=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", {"all-reduce": 2 * 7 * 4000 // 8}),
        ("sum of half", {"all-reduce": 2 * 3 * 4000 // 4}),
        ("copies", {"all-gather": 7 * 4000}),
        ("loop", {"all-reduce": 5 * (2 * 7 * 4000 // 8)}),
        ("nothing", {}),
    ],
)
def test_compiled_programs_send_what_was_asked_of_them(compiled, name, expected):
    assert compiled[name] == expected


def programs():
    """Functions of an array ``[8, 1000]``, each with the sharding of what it returns."""

    def loop(x):
        def body(total, _):
            return jnp.sin((total + x).sum(0)), None

        return jax.lax.scan(body, jnp.zeros(1000), None, length=5)[0]

    whole, rows = PartitionSpec(), PartitionSpec(("a", "b"))
    return {
        "sum": (lambda x: x.sum(0), whole),
        "sum of half": (lambda x: x.reshape(2, 4, 1000).sum(1), PartitionSpec("a")),
        "copies": (lambda x: x, whole),
        "loop": (loop, whole),
        "nothing": (lambda x: x + 1, rows),
    }


if __name__ == "__main__":
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    on, found = partial(NamedSharding, mesh), {}
    x = jax.ShapeDtypeStruct((8, 1000), jnp.float32, sharding=on(PartitionSpec(("a", "b"))))
    for name, (function, out) in programs().items():
        text = jax.jit(function, out_shardings=on(out)).lower(x).compile().as_text()
        found[name] = sent(text, 8, loops=5)
    print(json.dumps(found))
