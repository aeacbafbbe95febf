"""The one error of this package."""


class CheckpointError(ValueError):
    """Weights that cannot be used; the message says what was found, expected, and what to do."""
