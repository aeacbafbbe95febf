"""Multi-head self-attention: what the dense model has. Its heads are an axis of their own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, Attention, cast
from spvit_jax.single_path.ops.op import Branch, Names, Op, Shared


class Msa(Op):
    """Attention over all tokens, or within windows; the dearest operation."""

    name = "msa"
    label = "attention"
    colour = "#1f5fa8"
    keyed = True

    def macs(self, geometry: Geometry) -> int:
        """Of merged tokens the places, by which queries and keys turn, are averaged."""
        averages = geometry.rotary and geometry.merged
        return 2 * geometry.tokens * (geometry.tokens + geometry.merged) if averages else 0

    def published_macs(self, geometry: Geometry) -> int:
        return self.macs(geometry)

    def parameters(self, geometry: Geometry) -> int:
        norms = 2 * geometry.width + (4 * geometry.head_dim if geometry.qk_norm else 0)
        return geometry.width + norms  # the output's bias, norm1 and those of queries and keys

    def branch(self, mixer: Any, shared: Shared, gate: Array, heads: Array, train: bool) -> Branch:
        attention, prefix = mixer.attention, mixer.geometry.prefix
        bias = cast(attention.v.bias[...], shared.x.dtype)
        q, k = attention.queries_and_keys(shared.x)
        attended = attention.attend(q, k, shared.values + bias)
        rows = jnp.repeat(heads, mixer.geometry.head_dim)[:, None]
        kernel = rows * attention.out.kernel[...]
        patches = None if mixer.geometry.class_only else attended[:, prefix:]
        return Branch(kernel, patches, attended[:, :prefix])

    def pruned(self, mixer: Any) -> Attention:
        return mixer.attention

    def names(self, form: str) -> Names:
        if form == "supernet":
            return ()
        return (
            ("qk", "attn.qk", "linear"),
            ("v", "attn.v", "linear"),
            ("out", "attn.proj", "linear"),
            ("position_bias", "attn.relative_position_bias_table", "position_bias"),
        )

    def found_in(self, block: Mapping[str, np.ndarray]) -> bool:
        return any(name.startswith("attn.qk") for name in block)  # qk, or qkv
