"""A 1x1 convolution: the centre tap of the 3x3 one."""

from spvit_jax.single_path.ops.convolution import Convolution

CONV1X1 = Convolution(1, colour="#f6c667")
