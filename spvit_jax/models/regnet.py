"""RegNetY (Radosavovic et al. 2020): the convolutional teacher DeiT and SPViT distil from."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.geometry import check_numbers
from spvit_jax.models.layers import Array, BatchNorm, Dense
from spvit_jax.models.transformer import Classifier, check_options, wide
from spvit_jax.sizes import Size, as_size

STEM = 32  # channels of the first convolution


@dataclasses.dataclass(frozen=True)
class RegNetSpec:
    """The shape of a RegNetY; tuples have one entry per stage.

    Raises:
      ValueError: numbers that are none or not above 0, groups that do not divide the widths, or
        not as many depths as widths.
    """

    widths: tuple[int, ...] = (224, 448, 1232, 3024)
    depths: tuple[int, ...] = (2, 4, 11, 1)
    group: int = 112  # channels of a group of the 3x3 convolutions
    image_size: Size = 224  # any other will do as well
    classes: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_numbers(self)
        if len(self.widths) != len(self.depths) or any(w % self.group for w in self.widths):
            raise ValueError(
                f"widths need a depth each, and to be multiples of the group width; got {self}"
            )


# Widths, depths and groups as timm has them; the number of a name is in 100 million MACs.
VARIANTS = {
    "regnety_002": RegNetSpec((24, 56, 152, 368), (1, 1, 4, 7), 8),
    "regnety_004": RegNetSpec((48, 104, 208, 440), (1, 3, 6, 6), 8),
    "regnety_006": RegNetSpec((48, 112, 256, 608), (1, 3, 7, 4), 16),
    "regnety_008": RegNetSpec((64, 128, 320, 768), (1, 3, 8, 2), 16),
    "regnety_016": RegNetSpec((48, 120, 336, 888), (2, 6, 17, 2), 24),
    "regnety_032": RegNetSpec((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "regnety_040": RegNetSpec((128, 192, 512, 1088), (2, 6, 12, 2), 64),
    "regnety_064": RegNetSpec((144, 288, 576, 1296), (2, 7, 14, 2), 72),
    "regnety_080": RegNetSpec((168, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_120": RegNetSpec((224, 448, 896, 2240), (2, 5, 11, 1), 112),
    "regnety_160": RegNetSpec(),
    "regnety_320": RegNetSpec((232, 696, 1392, 3712), (2, 5, 12, 1), 232),
    "regnety_fashion_mnist": RegNetSpec((32, 64, 128), (1, 2, 2), 16, image_size=28, classes=10),
}


class ConvNorm(nnx.Module):
    """A convolution without bias, padded by half its size, and its batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, groups: int, dtype, rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            stride,
            padding=[(size // 2, size // 2)] * 2,
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            param_dtype=jnp.result_type(float),
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs)

    def __call__(self, x: Array, train: bool) -> Array:
        return self.norm(self.conv(x), train)


class SqueezeExcite(nnx.Module):
    """Scales each channel by a gate computed from the averages of all."""

    def __init__(self, width: int, squeezed: int, dtype, rngs: nnx.Rngs):
        self.fc1 = Dense(width, squeezed, dtype=dtype, rngs=rngs)
        self.fc2 = Dense(squeezed, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        gate = jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(x.mean((1, 2))))))
        return x * gate[:, None, None]


class Bottleneck(nnx.Module):
    """1x1, grouped 3x3, squeeze and excite, 1x1; a shortcut, projected where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int, group: int, dtype, rngs: nnx.Rngs):
        conv = partial(ConvNorm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, width, 1, 1, 1)
        self.conv2 = conv(width, width, 3, stride, width // group)
        self.se = SqueezeExcite(width, round(inputs / 4), dtype, rngs)
        self.conv3 = conv(width, width, 1, 1, 1)
        differs = inputs != width or stride != 1
        self.shortcut = conv(inputs, width, 1, stride, 1) if differs else None

    def __call__(self, x: Array, train: bool) -> Array:
        y = jax.nn.relu(self.conv1(x, train))
        y = self.se(jax.nn.relu(self.conv2(y, train)))
        shortcut = x if self.shortcut is None else self.shortcut(x, train)
        return jax.nn.relu(self.conv3(y, train) + shortcut)


class RegNet(Classifier):
    """A RegNetY. It is a teacher: what the search replaces, it has not."""

    def __init__(self, spec: RegNetSpec, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        check_options(dtype=dtype)
        self.spec = spec
        self.dtype = dtype
        self.stem = ConvNorm(3, STEM, 3, 2, 1, dtype, rngs)
        self.stages: nnx.List = nnx.List()
        inputs = STEM
        for width, depth in zip(spec.widths, spec.depths, strict=True):
            blocks: nnx.List = nnx.List()
            for i in range(depth):
                stride = 2 if i == 0 else 1
                blocks.append(Bottleneck(inputs, width, stride, spec.group, dtype, rngs))
                inputs = width
            self.stages.append(blocks)
        self.head = Dense(inputs, spec.classes, dtype=dtype, rngs=rngs)

    def heads(
        self,
        images: Array,
        extras: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, ...]:
        """The logits of the one head; ``extras`` and ``key`` have nothing to act on."""
        x = jax.nn.relu(self.stem(images, train))
        for stage in self.stages:
            for block in stage:
                x = block(x, train)
        return (wide(self.head(x.mean((1, 2)))),)
