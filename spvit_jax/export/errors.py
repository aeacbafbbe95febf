"""Errors of exporting."""


class ExportError(ValueError):
    """A model, a path or options that cannot be exported so; says what to do."""


class CheckFailed(Exception):
    """A written file that does not compute what its model does; it is kept as ``….failed``."""
