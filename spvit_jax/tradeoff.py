"""``Frontier``: a trade-off curve as a value of Python, which shows itself and has its models."""

import base64
import dataclasses
import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spvit_jax.convert import load
from spvit_jax.curve import MODEL, Point, figure, folder_of, table
from spvit_jax.drawing import can_draw
from spvit_jax.models import Classifier
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture

if TYPE_CHECKING:
    from spvit_jax.figures import Figure


@dataclasses.dataclass(frozen=True)
class Placed(Point):
    """A point whose model is in a file, with its architecture beside it."""

    file: Path

    @property
    def model(self) -> Classifier:
        """The model, read from its file."""
        model: Classifier = load(self.file)
        return model

    @property
    def architecture(self) -> Architecture:
        """What the model keeps of the dense one."""
        return architectures.load(self.file.with_name("architecture.json"))


@dataclasses.dataclass(frozen=True, repr=False)
class Frontier:
    """A trade-off curve: the dense model's point, and one for each budget, as it was asked for.

    Iterating, indexing and ``len`` are over the smaller models' points.
    """

    dense: Point
    points: tuple[Placed, ...]
    name: str  # of the dense model

    @classmethod
    def of(
        cls, dense: Point, points: Sequence[Point], model: Classifier, workdir: Path
    ) -> "Frontier":
        """Takes the points of a run in ``workdir``."""
        placed = (
            Placed(**vars(point), file=workdir / folder_of(number) / MODEL)
            for number, point in enumerate(points)
        )
        return cls(dense, tuple(placed), type(model).__name__)

    def __iter__(self) -> Iterator[Placed]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, number: int) -> Placed:
        return self.points[number]

    def plot(self) -> "Figure":
        """Draws nearness over MACs and latency; a Matplotlib figure, which shows itself."""
        return figure([self.dense, *self.points], self.name)

    def __repr__(self) -> str:
        return table([self.dense, *self.points])

    def _repr_html_(self) -> str:
        """The figure, where Matplotlib is installed, above the table, for a notebook."""
        shown = f"<pre>{html.escape(repr(self))}</pre>"
        if not can_draw():
            return shown
        picture = base64.b64encode(self.plot()._repr_png_()).decode()
        return f'<img alt="frontier" src="data:image/png;base64,{picture}">{shown}'
