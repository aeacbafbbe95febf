"""``Tokens``: what flows between blocks, what each weighs; and merging those that say the same.

Token merging (Bolya et al., ICLR 2023): every second patch looks for the one of the others that is
most like it, and of the pairs so found the most alike become one token each, their average. A token
knows how many embedded ones it stands for, and every embedded one where it is now. No sort and no
scatter: places are counted, forward and backward.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
CLASS = 0.25  # what class tokens weigh beside all patches, where heads read them


class Tokens(NamedTuple):
    """The tokens between two blocks. Class tokens come first and are never merged.

    Attributes:
      x: ``[batch, n, D]``.
      sizes: how many embedded tokens each stands for, ``[batch, n]``; None: one each.
      sources: which of them each embedded token is in, ``[batch, embedded]``; None: its own.
    """

    x: Array
    sizes: Array | None = None
    sources: Array | None = None

    def unmerged(self) -> Array:
        """Gives every embedded token what became of it: ``[batch, embedded, D]``."""
        if self.sources is None:
            return self.x
        return jnp.take_along_axis(self.x, self.sources[..., None], axis=1)

    def means(self, x: Array) -> Array:
        """Averages the embedded tokens' ``x [batch, embedded, D]`` as these were merged.

        What is of other tokens than the embedded ones, so of class tokens alone, stays.
        """
        if self.sources is None or x.shape[1] != self.sources.shape[1]:
            return x
        own = jax.nn.one_hot(self.sources, self.x.shape[1], axis=1, dtype=x.dtype)
        return jnp.matmul(own, x, precision="highest") / own.sum(-1, keepdims=True)


def token_weights(count: int, read: int) -> np.ndarray:
    """What each of ``count`` tokens weighs, of which heads read the first ``read``: they are few.

    ``[count]``; at least as much as any other.
    """
    weight = np.ones(count, np.float32)
    if read:
        weight[:read] = max(CLASS * (count - read) / read, 1)
    return weight


def tokens_read(spec: Any) -> int:
    """How many tokens the heads of a model read, the first ones; 0: all are averaged."""
    first = spec.blocks[0]
    return first.class_tokens if first.prefix and spec.pool == "token" else 0


class Matching(NamedTuple):
    """Which tokens become one.

    Attributes:
      places: where each token goes, ``[batch, n]``.
      kept: the tokens that stay, ascending, ``[batch, n - count]``.
      gone: those that join one of them, ``[batch, count]``.
    """

    places: Array
    kept: Array
    gone: Array


def merge(tokens: Tokens, alike: Array, count: int, prefix: int) -> Tokens:
    """Merges ``count`` of the tokens away.

    Args:
      tokens: before.
      alike: ``[batch, n, k]``; the tokens of the largest cosine are merged. No gradient.
      count: at most half of the patches.
      prefix: class tokens in front.
    """
    matching = match(jax.lax.stop_gradient(alike), count, prefix)
    wide = jnp.promote_types(tokens.x.dtype, jnp.float32)
    sizes = jnp.ones(tokens.x.shape[:2], wide) if tokens.sizes is None else tokens.sizes
    summed = _summed(sizes[..., None], matching)
    shares = sizes[..., None] / jnp.take_along_axis(summed, matching.places[..., None], axis=1)
    sources = matching.places
    if tokens.sources is not None:
        sources = jnp.take_along_axis(sources, tokens.sources, axis=1)
    x = _averaged(tokens.x, shares.astype(tokens.x.dtype), matching)
    return Tokens(x, summed[..., 0], sources)


def match(alike: Array, count: int, prefix: int) -> Matching:
    """Pairs every second patch with the others, and takes the ``count`` pairs most alike.

    Of equals, the first. In float32 at least, so that it does not depend on how ``alike`` is held.
    """
    patches = alike[:, prefix:].astype(jnp.promote_types(alike.dtype, jnp.float32))
    length = jnp.linalg.norm(patches, axis=-1, keepdims=True)
    patches = patches / jnp.maximum(length, jnp.finfo(patches.dtype).tiny)
    movable, others = patches[:, 1::2], patches[:, 0::2]
    cosines = jnp.einsum("bmd,bod->bmo", movable, others, precision="highest")
    best, partner = cosines.max(-1), cosines.argmax(-1)
    order = jnp.arange(best.shape[1])
    ahead = (best[:, None] > best[..., None]) | (
        (best[:, None] == best[..., None]) & (order < order[:, None])
    )
    rank = ahead.sum(-1)
    gone = ((rank[:, None] == jnp.arange(count)[:, None]) * order).sum(-1)
    stays = _interleaved(jnp.ones(others.shape[:2], bool), rank >= count)
    so_far = stays.cumsum(1)
    kept = (so_far[:, None] <= jnp.arange(patches.shape[1] - count)[:, None]).sum(-1)
    stay = so_far - 1
    joins = jnp.take_along_axis(stay[:, 0::2], partner, axis=1)
    places = _interleaved(stay[:, 0::2], jnp.where(rank < count, joins, stay[:, 1::2]))
    first = jnp.broadcast_to(jnp.arange(prefix), (alike.shape[0], prefix))
    return Matching(
        jnp.concatenate([first, prefix + places], 1),
        jnp.concatenate([first, prefix + kept], 1),
        prefix + 2 * gone + 1,
    )


def macs(patches: int, prefix: int, count: int, width: int, key_width: int) -> int:
    """Counts the multiply-accumulates of merging ``count`` of so many patches of an image."""
    if not count:
        return 0
    cosines = (patches // 2) * (patches - patches // 2) * key_width
    return cosines + (prefix + patches - count) * count * (width + 1)


def _interleaved(even: Array, odd: Array) -> Array:
    """``even`` and ``odd`` in turn along axis 1; there is one more even than odd, or as many."""
    total = even.shape[1] + odd.shape[1]
    odd = jnp.pad(odd, ((0, 0), (0, even.shape[1] - odd.shape[1])))
    return jnp.stack([even, odd], axis=2).reshape(even.shape[0], -1)[:, :total]


def _summed(x: Array, matching: Matching) -> Array:
    """Adds the rows that go to those they join: ``[batch, n - count, D]``."""
    kept = jnp.take_along_axis(x, matching.kept[..., None], axis=1)
    gone = jnp.take_along_axis(x, matching.gone[..., None], axis=1)
    targets = jnp.take_along_axis(matching.places, matching.gone, axis=1)
    joins = jax.nn.one_hot(targets, kept.shape[1], axis=1, dtype=x.dtype)
    return kept + jnp.matmul(joins, gone, precision="highest")


@jax.custom_vjp
def _averaged(x: Array, shares: Array, matching: Matching) -> Array:
    """Averages by the ``shares [batch, n, 1]`` of each token, of which no gradient is taken."""
    return _summed(shares * x, matching)


def _averaged_forward(x: Array, shares: Array, matching: Matching) -> tuple[Array, tuple]:
    return _averaged(x, shares, matching), (shares, matching.places)


def _averaged_backward(saved: tuple, gradient: Array) -> tuple:
    shares, places = saved
    return shares * jnp.take_along_axis(gradient, places[..., None], axis=1), None, None


_averaged.defvjp(_averaged_forward, _averaged_backward)
