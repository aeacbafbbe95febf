"""The errors of this package."""


class CheckpointError(ValueError):
    """Weights that cannot be used; the message says what was found, expected, and what to do."""


class Unreachable(CheckpointError, ConnectionError):
    """Weights that could not be reached, and may be at another time."""
