"""A Matplotlib figure that shows itself in a notebook, whatever backend is chosen there."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A figure of its own, which ``pyplot`` knows nothing of."""

    def _repr_png_(self) -> bytes:
        """Its picture, for a notebook."""
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()
