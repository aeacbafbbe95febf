"""Files that run where people run them: ``export(model, path)``, by the path's suffix.

``onnx`` emits the layers as operators, ``stablehlo`` is ``jax.export``, ``int8`` quantises,
``spvit_torch`` is a module for PyTorch that goes along with the weights. Every file is written
aside, run and compared with the model before it takes its place, and beside it
``NAME.preprocess.json`` says how a photograph becomes its input.
"""

import sys
import types
from typing import Any

from spvit_jax.export.errors import CheckFailed, ExportError
from spvit_jax.export.export import SUFFIXES, Exported, export

__all__ = ["SUFFIXES", "CheckFailed", "ExportError", "Exported", "export"]


class _Callable(types.ModuleType):
    """This package, which is the function of its name too: ``spvit_jax.export(model, path)``."""

    def __call__(self, *arguments: Any, **options: Any) -> Exported:
        return export(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
