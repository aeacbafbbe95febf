"""A 3x3 convolution."""

from spvit_jax.single_path.ops.convolution import Convolution

CONV3X3 = Convolution(3, colour="#e08214")
