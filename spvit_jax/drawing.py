"""How axes look in all figures."""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#333333"


def style(axes: "Axes", title: str, size: int = 11) -> None:
    """Gives axes their title, on the left, and no frame above and to the right."""
    axes.set_title(title, loc="left", fontsize=size, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)


def can_draw() -> bool:
    """Whether Matplotlib is installed: ``pip install 'spvit_jax[reports]'``."""
    return importlib.util.find_spec("matplotlib") is not None
