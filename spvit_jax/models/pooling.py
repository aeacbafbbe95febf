"""Attention pooling: one learnt query looks at all tokens (SigLIP's head, big_vision's MAP)."""

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.attention import attention
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, Dense, Mlp, cast
from spvit_jax.models.tokens import Tokens

LATENT_INIT = nnx.initializers.normal(0.02)


class AttentionPool(nnx.Module):
    """Multi-head attention of a learnt query over normalised tokens, then an FFN of its own."""

    def __init__(
        self,
        geometry: Geometry,
        norm: nnx.LayerNorm,
        *,
        activation: str,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """``geometry`` is that of the last block, ``norm`` the FFN's."""
        width = geometry.width
        self.latent = nnx.Param(LATENT_INIT(rngs.params(), (1, width)))
        self.q, self.k, self.v, self.out = (
            Dense(width, width, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.norm = norm
        self.ffn = Mlp(geometry, activation=activation, dropout=0.0, dtype=dtype, rngs=rngs)
        self.heads = geometry.heads

    def __call__(self, x: Array, tokens: Tokens) -> Array:
        """Pools ``x [batch, n, D]`` to ``[batch, 1, D]``; merged ``tokens`` count as so many."""
        bias = None if tokens.sizes is None else jnp.log(tokens.sizes)[:, None, None]
        latent = cast(self.latent[...], x.dtype)
        query = jnp.broadcast_to(self.q(latent), (x.shape[0], *latent.shape))
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (query, self.k(x), self.v(x)))
        pooled = self.out(attention(q, k, v, bias).reshape(query.shape))
        return pooled + self.ffn(self.norm(pooled))


def macs(geometry: Geometry) -> int:
    """Counts the multiply-accumulates of pooling what leaves a block of this geometry."""
    n, width = geometry.ffn_tokens, geometry.width
    return 2 * (n + 1) * width**2 + 2 * n * width + 2 * width * geometry.hidden
