"""timm and open_clip without torchvision, which both import but a vision transformer never uses."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class Anything(type):
    """Classes whose attributes are told apart by name, and that is all."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Stub(types.ModuleType):
    """Any module below torchvision, and any name in it."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision wherever it is looked for."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def torchvision():
    """Imports of torchvision succeed inside, and leave nothing behind; the real one comes first."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = Stubs()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, Stub)]:
            del sys.modules[name]
