"""What a model sees in images: ``predict(model, images)``, and a command of that name."""

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    """This package, which is the function of its name too: ``spvit_jax.predict(model, images)``."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        classify = importlib.import_module("spvit_jax.predict.classify")
        return classify.predict(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
