"""``Quality``: how good a model is on the test images, by what can be said of them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Quality:
    """What was measured of a model; None where it was not. Shares are fractions 0..1.

    Cosines and errors are of its features to the dense model's, of the same image: of what the
    heads see, or would see, and of the patches where these are read. An error is the squared
    difference over the variance of the dense model's.
    """

    images: int
    top1: float | None = None  # of its logits, where images have labels
    top5: float | None = None
    cosine: float | None = None  # mean over images
    cosine_worst: float | None = None  # of all images
    error: float | None = None
    patch_cosine: float | None = None  # mean over patches of all images
    patch_cosine_worst: float | None = None  # of the images' means
    patch_error: float | None = None
    knn: float | None = None  # top-1 by the nearest training images' labels
    linear: float | None = None  # top-1 of a linear classifier of the training images' features

    @property
    def value(self) -> float:
        """The number that models are compared by."""
        number = self.cosine if self.top1 is None else self.top1
        return 0.0 if number is None else number

    @property
    def measure(self) -> str:
        """What ``value`` is."""
        return "cosine to the dense features" if self.top1 is None else "top-1 (%)"

    @property
    def shown(self) -> str:
        """``value`` as a cell of a table."""
        return f"{self.value:.4f}" if self.top1 is None else f"{100 * self.value:.2f}"

    def summary(self) -> str:
        """All that was measured, in words."""
        parts = [
            text.format(value)
            for name, text in _WORDS.items()
            if (value := getattr(self, name)) is not None
        ]
        return f"{', '.join(parts)} of {self.images:,} images"


_WORDS = {
    "top1": "top-1 {:.2%}",
    "cosine": "cosine to the dense features {:.4f}",
    "cosine_worst": "worst {:.3f}",
    "patch_cosine": "patches {:.4f}",
    "knn": "nearest neighbours {:.2%}",
    "linear": "linear probe {:.2%}",
}
ROWS = {  # of a table: the field, how a number looks, what is said of a difference
    "top1": ("top-1 (%)", 100.0, ".2f", " points"),
    "cosine": ("cosine to the dense features", 1.0, ".4f", ""),
    "cosine_worst": ("  of the worst image", 1.0, ".4f", ""),
    "error": ("error of the features", 1.0, ".4f", ""),
    "patch_cosine": ("cosine, patches", 1.0, ".4f", ""),
    "patch_error": ("error of the patches", 1.0, ".4f", ""),
    "knn": ("nearest neighbours, top-1 (%)", 100.0, ".2f", " points"),
    "linear": ("linear probe, top-1 (%)", 100.0, ".2f", " points"),
}
