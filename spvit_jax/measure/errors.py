"""Errors of measuring."""


class MeasureError(ValueError):
    """A model, a runtime or test images that cannot be measured; says what to do."""
