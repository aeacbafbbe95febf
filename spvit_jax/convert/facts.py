"""``Facts``: what a checkpoint's arrays do not say of their model."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known besides arrays; 0 or "" where it is not."""

    heads: int = 0  # of a Swin's first stage
    activation: str = ""  # of the FFN units, one of models.activations.ACTIVATIONS
    epsilon: float = 0.0  # of the norms
    rotary: str = ""  # one of models.rotary.KINDS
    rotary_grid: int = 0  # see ViTSpec
    image_size: int = 0


UNKNOWN = Facts()
