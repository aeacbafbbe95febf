"""Multiply-accumulates of a traced program, exactly: those of its matrix products."""

import math
from typing import Any

_LOOPS = ("while", "cond")  # how often their parts run is not known before they do


def macs(jaxpr: Any) -> int:
    """Multiply-accumulates of all products and convolutions in a ``Jaxpr``, loops unrolled.

    Products of zeros that pad a convolution count, as they do on a device.

    Raises:
      ValueError: a product stands where it is not known how often it runs.
    """
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = sum(macs(part) for part in _inside(equation))
        if inner and name in _LOOPS:
            raise ValueError(f"there are products in a {name!r}, which may run any number of times")
        times = equation.params["length"] if name == "scan" else 1
        total += times * inner + _own(equation)
    return total


def _inside(equation: Any) -> list[Any]:
    """The jaxprs that an equation runs."""
    parts = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            part = getattr(item, "jaxpr", item)
            if hasattr(part, "eqns"):
                parts.append(part)
    return parts


def _own(equation: Any) -> int:
    """Multiply-accumulates of one equation, without those inside it."""
    name = equation.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return 0
    out = math.prod(equation.outvars[0].aval.shape)
    left, right = (variable.aval.shape for variable in equation.invars)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(left[axis] for axis in contracted)
    features = right[equation.params["dimension_numbers"].rhs_spec[0]]
    return out * math.prod(right) // features
