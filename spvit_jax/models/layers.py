"""Layers that every model here is built from.

Where a framework default differs from PyTorch's, PyTorch's is taken and said: unbiased running
variance, layer norm without the fast variance. Initial weights are those of the
original ViT: Xavier's uniform distribution, zero biases.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.models.activations import ACTIVATIONS
from spvit_jax.models.attention import attention
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.rotary import Rotary
from spvit_jax.models.tokens import Tokens, merge

Array = jax.Array
Keys = Sequence[Array | None]  # for dropout and stochastic depth; None: off
Indices = Sequence[int] | np.ndarray

INIT = nnx.initializers.xavier_uniform()


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes each element with probability ``rate``; the identity without a key."""
    return _drop(x, rate, key, x.shape)


def drop_path(x: Array, rate: float, key: Array | None) -> Array:
    """Stochastic depth: zeroes whole samples of a residual branch; the identity without a key."""
    return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: Array, rate: float, key: Array | None, shape: tuple[int, ...]) -> Array:
    if rate == 0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x / (1 - rate), 0)


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """``x [..., in] @ kernel [in, out] + bias``, as one 2-D product.

    The weight gradient of a 3-D product contracts two axes and misses XLA's fast path on CPU.
    """
    y = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ kernel
    if bias is not None:
        y = y + bias
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nnx.Module):
    """A fully connected layer: ``kernel [in, out]``, ``bias [out]``."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(INIT(rngs.params(), (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.dtype = dtype

    def weights(self) -> tuple[Array, Array]:
        """Kernel and bias in the dtype of the computation."""
        return cast(self.kernel[...], self.dtype), cast(self.bias[...], self.dtype)

    def keep_outputs(self, kept: Indices) -> None:
        """Takes out all outputs but those ``kept``, indices."""
        self.kernel = nnx.Param(take(self.kernel[...], kept, axis=1))
        self.bias = nnx.Param(take(self.bias[...], kept, axis=0))

    def __call__(self, x: Array) -> Array:
        return dense(cast(x, self.dtype), *self.weights())


def take(values: Array, kept: Indices, axis: int) -> Array:
    """Takes ``kept`` of an axis; on the host, since XLA would compile that for each number of them.

    Within a traced function it is traced as well.
    """
    index = np.asarray(kept, int)
    if isinstance(values, jax.core.Tracer):
        return jnp.take(values, index, axis)
    return jax.device_put(np.take(np.asarray(values), index, axis))


def cast(x: Array, dtype: jnp.dtype | None) -> Array:
    """``x`` in ``dtype``; None leaves it."""
    return x if dtype is None else x.astype(dtype)


class BatchNorm(nnx.Module):
    """Batch norm over the last axis with torch's definition (eps 1e-5, momentum 0.1).

    Normalises with the biased variance and keeps the unbiased one, in float32 or wider. On an
    array sharded over its batch the statistics are those of the global batch.
    """

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    EPSILON = 1e-5
    MOMENTUM = 0.1

    def __call__(self, x: Array, train: bool) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = wide.mean(axes), wide.var(axes)
            count = x.size // x.shape[-1]
            self.mean[...] += self.MOMENTUM * (mean - self.mean[...])
            self.var[...] += self.MOMENTUM * (var * (count / max(count - 1, 1)) - self.var[...])
        else:
            mean, var = self.mean[...], self.var[...]
        scale = self.scale[...] * jax.lax.rsqrt(var + self.EPSILON)
        return (wide * scale + (self.bias[...] - mean * scale)).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention: ``[batch, tokens, width]`` to ``[batch, read, width]``.

    Queries and keys are one projection, values another: the values are what convolutions share.
    Heads may have been taken out, or features of each, so that queries, keys and values need not be
    as wide as the tokens, nor as one another.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        norms: tuple[Any, Any] | None = None,
        rotary: Rotary | None = None,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        """``norms`` are of each head's queries and of its keys, ``rotary`` turns both by place."""
        width = geometry.width
        self.heads = geometry.heads
        self.read = geometry.read
        self.qk = Dense(width, 2 * width, dtype=dtype, rngs=rngs)
        self.v = Dense(width, width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)
        self.q_norm: Any = norms and norms[0]
        self.k_norm: Any = norms and norms[1]
        self.rotary = rotary

    def attend(self, q: Array, k: Array, values: Array, tokens: Tokens | None = None) -> Array:
        """Averages values ``[batch, tokens, heads * value_dim]`` to those of the queries.

        Queries and keys are as projected. Those of ``tokens`` that were merged count as many times;
        None: nothing was merged.
        """
        sizes = None if tokens is None else tokens.sizes
        bias = None if sizes is None else jnp.log(sizes)[:, None, None]
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (q, k, values))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            angles = self.rotary.angles(tokens, q.shape[-1])
            q, k = self.rotary.turn(q, angles), self.rotary.turn(k, angles)
        return attention(q, k, v, bias).reshape(*q.shape[:2], values.shape[-1])

    def queries_and_keys(self, x: Array) -> tuple[Array, Array]:
        """Projects queries of the tokens that are read, and keys of all."""
        if self.read >= x.shape[1]:
            q, k = jnp.split(self.qk(x), 2, axis=-1)
            return q, k
        x, (kernel, bias) = cast(x, self.qk.dtype), self.qk.weights()
        (q_kernel, k_kernel), (q_bias, k_bias) = (jnp.split(a, 2, -1) for a in (kernel, bias))
        return dense(x[:, : self.read], q_kernel, q_bias), dense(x, k_kernel, k_bias)

    def mean_keys(self, k: Array) -> Array:
        """The heads' average key of each token, ``[batch, tokens, key_dim]``."""
        return k.reshape(*k.shape[:2], self.heads, -1).mean(2)

    def keep_heads(self, kept: tuple[int, ...]) -> None:
        """Takes out all heads but those ``kept``."""
        keys, values = self._by_heads()
        self._keep(keys[list(kept)], values[list(kept)])
        self.heads = len(kept)

    def keep_dims(self, keys: int, values: int) -> None:
        """Keeps the first features of each head alone: of queries and keys, and of values.

        Queries grow by what their products are divided by less.
        """
        by_key, by_value = self._by_heads()
        if (by_key.shape[1], by_value.shape[1]) == (keys, values):
            return
        of_queries = np.arange(self.qk.kernel.shape[1]) < by_key.size
        scale = np.where(of_queries, math.sqrt(keys / by_key.shape[1]), 1)
        for part in (self.qk.kernel, self.qk.bias):
            part[...] = part[...] * scale.astype(part[...].dtype)
        self._keep(by_key[:, :keys], by_value[:, :values])

    def _by_heads(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the features of each head are, of queries or keys and of values."""
        many = self.qk.kernel.shape[1] // 2, self.v.kernel.shape[1]
        keys, values = (np.arange(n).reshape(self.heads, -1) for n in many)
        return keys, values

    def _keep(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Takes out all features but these."""
        width, keys, values = self.qk.kernel.shape[1] // 2, keys.ravel(), values.ravel()
        self.qk.keep_outputs(np.concatenate([keys, width + keys]))
        self.v.keep_outputs(values)
        self.out.kernel = nnx.Param(take(self.out.kernel[...], values, axis=0))

    def __call__(
        self, x: Array, train: bool = False, tokens: Tokens | None = None
    ) -> tuple[Array, Array]:
        """Mixes normalised ``x`` of tokens; the branch, and the keys of all of them."""
        q, k = self.queries_and_keys(x)
        return self.out(self.attend(q, k, self.v(x), tokens)), k


class Identity(nnx.Module):
    """What ``norm_skip`` mixes tokens with: the branch is ``norm1(x)`` itself."""

    def __call__(self, x: Array, train: bool = False) -> Array:
        return x


class Mlp(nnx.Module):
    """The feed-forward network: ``width -> hidden`` units, an activation, ``-> width``.

    With a gate for each unit, what is activated is a projection of its own, ``gate``, and ``fc1``'s
    is multiplied by it (SwiGLU where the activation is SiLU).
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        activation: str = "gelu",
        dropout: float,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        width, hidden = geometry.width, geometry.hidden
        self.fc1 = Dense(width, hidden, dtype=dtype, rngs=rngs)
        self.gate = Dense(width, hidden, dtype=dtype, rngs=rngs) if geometry.gated else None
        self.fc2 = Dense(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation
        self.dropout = dropout

    def units(self, x: Array, key: Array | None = None) -> Array:
        """The units' activations, ``[batch, tokens, hidden]``."""
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            return dropout(activate(self.fc1(x)), self.dropout, key)
        return dropout(activate(self.gate(x)) * self.fc1(x), self.dropout, key)

    def keep_units(self, kept: Indices) -> None:
        """Takes out all units but those ``kept``, indices."""
        for projection in (self.fc1, *([self.gate] if self.gate else [])):
            projection.keep_outputs(kept)
        self.fc2.kernel = nnx.Param(take(self.fc2.kernel[...], kept, axis=0))

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        return self.fc2(self.units(x, key))


class Block(nnx.Module):
    """``x + mixer(norm1(x))``, then ``x + ffn(norm2(x))``, on ``Tokens``.

    A mixer is called as ``mixer(x, train)``; None, with no norm1 either, is the skip. Of the tokens
    the first ``read`` are read, and so go on. Between the two, ``merges`` of the patches are merged
    away: those with like keys, or where nothing attends, of like input to the FFN.
    """

    def __init__(
        self,
        norm1: Any,
        mixer: Any,
        norm2: nnx.LayerNorm,
        ffn: Mlp,
        *,
        geometry: Geometry,
        dropout: float,
        drop_path: float,
    ):
        self.norm1 = norm1
        self.mixer = mixer
        self.norm2 = norm2
        self.ffn = ffn
        self.read = geometry.read
        self.prefix = geometry.prefix
        self.merges = geometry.merges
        self.dropout = dropout
        self.drop_path = drop_path

    def __call__(self, tokens: Tokens, *, key: Array | None = None, train: bool = False) -> Tokens:
        keys = split_key(key, 5)
        return self.feed(self.mix(tokens, keys[:2], train), keys[2:])

    def mix(self, tokens: Tokens, keys: Keys = (None, None), train: bool = False) -> Tokens:
        """Runs the first half: mixes tokens, and merges some."""
        k, x = None, tokens.x[:, : self.read]
        if isinstance(self.mixer, Attention):
            branch, k = self.mixer(self.norm1(tokens.x), train, tokens)
            x = x + self.residual(branch, keys)
        elif self.mixer is not None:
            branch = self.mixer(self.norm1(tokens.x), train)[:, : self.read]
            x = x + self.residual(branch, keys)
        tokens = tokens._replace(x=x) if x.shape[1] == tokens.x.shape[1] else Tokens(x)
        if not self.merges:
            return tokens
        alike = self.norm2(x) if k is None else self.mixer.mean_keys(k)
        return merge(tokens, alike, self.merges, self.prefix)

    def feed(self, tokens: Tokens, keys: Keys = (None, None, None)) -> Tokens:
        """Runs the second half, the FFN."""
        branch = self.ffn(self.norm2(tokens.x), keys[0])
        return tokens._replace(x=tokens.x + self.residual(branch, keys[1:]))

    def residual(self, branch: Array, keys: Keys) -> Array:
        """A branch after dropout and stochastic depth."""
        return drop_path(dropout(branch, self.dropout, keys[0]), self.drop_path, keys[1])


def split_key(key: Array | None, count: int) -> list[Array | None]:
    """``count`` keys, all None without one."""
    return [None] * count if key is None else list(jax.random.split(key, count))
