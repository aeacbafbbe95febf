"""The exceptions of the input side."""


class DataError(ValueError):
    """Data that is missing, damaged or unusable; the message says what to put where."""


class LabelError(DataError):
    """A label of no class; never left out as a damaged image may be, since others may be wrong."""


def check_label(label: int, classes: int, name: str) -> None:
    """Raises LabelError unless ``label``, of the image ``name``, is one of 0 to ``classes`` - 1."""
    if not 0 <= label < classes:
        means = ", which TFDS writes where nobody has labelled an image" if label == -1 else ""
        raise LabelError(
            f"the image {name} has the label {label}{means}; there are {classes} classes, 0 to"
            f" {classes - 1}: take a split that is labelled with these, or prepare the set again"
        )
