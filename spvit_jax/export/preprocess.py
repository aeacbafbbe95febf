"""``Preprocess``: how a photograph becomes what a model expects; travels with every file."""

import dataclasses
import json
from typing import Any

from spvit_jax.convert import About
from spvit_jax.export.errors import ExportError
from spvit_jax.sizes import shown, sides


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a model sees it.

    The image is resized so that it just covers ``resize`` (its longer side rounded down), and the
    middle ``crop`` pixels are taken; its values, in 0..1, less ``mean``, divided by ``std``.
    """

    resize: tuple[int, int]  # height, width, as is
    crop: tuple[int, int]
    interpolation: str
    channels: int  # 1: grey, 3: RGB
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]  # of the first logits, in their order

    @classmethod
    def of(cls, model: Any, about: About, notes: list[str]) -> "Preprocess":
        """Takes what is known of a model, and ImageNet's usual values for the rest.

        Args:
          model: of any form.
          about: what it was trained on.
          notes: gets a sentence for what is not known.

        Raises:
          ExportError: mean and std are of other channels than the model sees.
        """
        about = about.or_usual(notes)
        channels = getattr(model.spec, "channels", 3)
        if len(about.mean) != channels:
            raise ExportError(
                f"the model sees images of {channels} channels, but mean and std have"
                f" {len(about.mean)} numbers; give as many by --mean and --std"
            )
        height, width = crop = sides(model.spec.image_size)
        ratio = about.crop_ratio or 1
        return cls(
            resize=(round(height / ratio), round(width / ratio)),
            crop=crop,
            interpolation="bicubic",
            channels=channels,
            mean=about.mean,
            std=about.std,
            class_names=about.class_names,
        )

    def to_json(self) -> str:
        """Writes it as a JSON object, indented."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        """Reads what ``to_json`` wrote.

        Raises:
          ValueError: it is something else.
        """
        values: Any = json.loads(text)
        wanted = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or not set(wanted) <= set(values):
            raise ValueError(f"expected a JSON object of {', '.join(wanted)}")
        known: dict[str, Any] = {name: values[name] for name in wanted}
        for name, value in known.items():
            known[name] = tuple(value) if type(value) is list else value
        preprocess = cls(**known)
        pairs = [p if type(p) is tuple else () for p in (preprocess.resize, preprocess.crop)]
        numbers = [preprocess.channels, *pairs[0], *pairs[1]]
        if list(map(len, pairs)) != [2, 2] or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError(
                "resize and crop must be two whole numbers above 0 each, channels one; got"
                f" {preprocess.resize!r}, {preprocess.crop!r} and {preprocess.channels!r}"
            )
        if any(crop > whole for whole, crop in zip(*pairs, strict=True)):
            raise ValueError(
                f"a crop of {shown(preprocess.crop)} pixels is more than {shown(preprocess.resize)}"
            )
        About(preprocess.class_names, preprocess.mean, preprocess.std)
        if len(preprocess.mean) != preprocess.channels:
            raise ValueError(
                f"{preprocess.channels} channels, but {len(preprocess.mean)} numbers of mean"
            )
        return preprocess
