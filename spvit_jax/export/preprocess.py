"""``Preprocess``: how a photograph becomes what a model expects; travels with every file."""

import dataclasses
import json
from typing import Any

from spvit_jax.convert import USUAL, About
from spvit_jax.export.errors import ExportError
from spvit_jax.sizes import Size, as_size, sides


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a model sees it.

    The image is resized so that its short side is ``resize`` pixels, or, where that is a pair, so
    that it just covers that height and width (the other side rounded down), and the middle ``crop``
    pixels are taken; its values, in 0..1, less ``mean``, divided by ``std``.
    """

    resize: Size
    crop: tuple[int, int]  # height, width
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
        missing = [name for name in ("mean", "std", "crop_ratio") if not getattr(about, name)]
        if missing:
            usual = {name: getattr(USUAL, name) for name in missing}
            about = dataclasses.replace(about, **usual)
            said = ", ".join(f"{name} {value}" for name, value in usual.items())
            notes.append(f"the model's file does not say its {said}: ImageNet's usual, taken here")
        channels = getattr(model.spec, "channels", 3)
        if len(about.mean) != channels:
            raise ExportError(
                f"the model sees images of {channels} channels, but mean and std have"
                f" {len(about.mean)} numbers; give as many by --mean and --std"
            )
        height, width = crop = sides(model.spec.image_size)
        ratio = about.crop_ratio or 1
        return cls(
            resize=as_size((round(height / ratio), round(width / ratio))),
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
