"""A convolution whose kernel is a mixture of the heads' value projections (paper, section 3.1)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, BatchNorm, cast
from spvit_jax.single_path.ops.op import Branch, Names, Op, Shared
from spvit_jax.single_path.sharing import (
    FoldedConv,
    SharedConv,
    mix_values,
    own_taps,
    tap_outputs,
    unlearnt,
)


class Convolution(Op):
    """Kernel of ``size x size`` taps, batch norm, ReLU, output projection; class tokens pass."""

    def __init__(self, size: int, colour: str):
        self.size = size
        self.name = f"conv{size}x{size}"
        self.label = f"{size}×{size} convolution"
        self.colour = colour

    def fits(self, geometry: Geometry) -> bool:
        return self.size == 1 or not geometry.merged

    def macs(self, geometry: Geometry) -> int:
        return 0 if geometry.class_only else self.published_macs(geometry)

    def published_macs(self, geometry: Geometry) -> int:
        return (self.size**2 + 1) * geometry.width * geometry.head_dim * geometry.patches

    def parameters(self, geometry: Geometry) -> int:
        width, head_dim = geometry.width, geometry.head_dim
        return (self.size**2 + 1) * width * head_dim + head_dim + width + 2 * width

    def parts(self, geometry: Geometry) -> BatchNorm:
        return BatchNorm(geometry.head_dim)

    def branch(self, mixer: Any, shared: Shared, gate: Array, heads: Array, train: bool) -> Branch:
        geometry, attention = mixer.geometry, mixer.attention
        mixture = own_taps(shared.mixture, self.size)
        kernel = gate * tap_outputs(attention.out, mixture)
        if geometry.class_only and not train:
            return Branch(kernel, None, None)
        values = shared.values[:, geometry.prefix :]
        batch, patches, width = values.shape
        values = values.reshape(batch, *geometry.grid, width)
        mixture = cast(mixture, values.dtype)
        head_bias = cast(attention.v.bias[...], values.dtype).reshape(geometry.heads, -1)
        bias = unlearnt(jnp.einsum("hd,h->d", head_bias, mixture.sum(1)), train)
        hidden = mixer.parts[self.name](mix_values(values, mixture) + bias, train)
        if geometry.class_only:  # all that is left of it: the norm has seen the batch
            return Branch(kernel, None, None)
        return Branch(kernel, jax.nn.relu(hidden).reshape(batch, patches, -1), None)

    def pruned(self, mixer: Any) -> SharedConv:
        norm, logits = mixer.parts[self.name], mixer.head_logits
        geometry, temperature = mixer.geometry, mixer.temperature
        return SharedConv(mixer.attention, logits, norm, self.size, geometry, temperature)

    def folded(self, module: Any, batch_norm: bool) -> FoldedConv:
        if isinstance(module, SharedConv):
            module = module.folded()
        if batch_norm:
            module.fold_norm()
        return module

    def names(self, form: str) -> Names:
        norm = f"attn.bn_{self.size}x{self.size}"
        return {
            "supernet": (("", norm, "batch_norm"),),
            "shared": (
                ("v", "attn.v", "linear"),
                ("out", "attn.proj", "linear"),
                ("head_logits", "attn.head_probs", "taps"),
                ("norm", norm, "batch_norm"),
            ),
            "folded": (
                ("", "attn.bconv.0", "convolution"),
                ("norm", "attn.bconv.1", "batch_norm"),
                ("out", "attn.bconv.3", "pointwise"),
            ),
        }[form]

    def found_in(self, block: Mapping[str, np.ndarray]) -> bool:
        kernel = block.get("attn.bconv.0.weight")
        if kernel is not None:
            return kernel.shape[-1:] == (self.size,)
        return any(name.startswith(f"attn.bn_{self.size}x{self.size}.") for name in block)
