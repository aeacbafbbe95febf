"""The one exception of the input side."""


class DataError(ValueError):
    """Data that is missing, damaged or unusable; the message says what to put where."""
