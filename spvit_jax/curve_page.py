"""The trade-off curve as a page: one HTML file that needs nothing beside it, no script either."""

import base64
from collections.abc import Sequence
from html import escape

from spvit_jax.curve import Curve, Point, folder_of, note, rows
from spvit_jax.markup import document, header, scrolls, section, table

LEGEND = (
    "Of each block its operation, msa being attention, with the heads that stay behind a colon, the"
    " features of their keys and values behind an x, and the tokens that it merges away behind a"
    " hyphen; then the FFN units of each."
)
SHOWN = 0.5  # the budget whose model the header is about: the one nearest to it


def curve_page(curve: Curve, name: str, picture: bytes, device: str) -> str:
    """Writes the HTML of a finished frontier.

    Args:
      curve: its points, and whether their head is yet untrained.
      name: of the dense model.
      picture: the curve as a PNG.
      device: that latencies were measured on.
    """
    dense, *smaller = curve.points
    alt = f"{dense.quality.measure} over MACs and over latency; the numbers are in the table below"
    image = f'<img class="wide" src="data:image/png;base64,{base64.b64encode(picture).decode()}"'
    kept = [
        ("budget", "file", "what each block keeps"),
        *(
            (f"{p.budget:.0%}", f"{folder_of(number)}/model.safetensors", p.blocks)
            for number, p in enumerate(smaller)
        ),
    ]
    return document(
        f"{name}, the curve",
        (
            _header(dense, smaller, name),
            section("The curve", scrolls(f'{image} alt="{escape(alt)}">', "curve")),
            section("Every budget", f"{table(rows(curve.points))}\n<p>{note(curve)}</p>"),
            section("Its models", f"<p>{LEGEND}</p>\n{table(kept, text=(1, 2))}"),
            f"<footer>Latencies on {escape(device)}; made by spvit_jax.</footer>",
        ),
    )


def _header(dense: Point, smaller: Sequence[Point], name: str) -> str:
    """The numbers of the model nearest to half of the MACs."""
    one = min(smaller, key=lambda p: abs(p.budget - SHOWN))
    figures = [
        (f"{one.quality.measure} at {one.budget:.0%}; dense {dense.quality.shown}",
         one.quality.shown),
        ("of the MACs, as run", f"{one.macs / dense.macs:.2f}×"),
        ("of the parameters", f"{one.parameters / dense.parameters:.2f}×"),
        ("of the latency, batch 1", f"{one.latency_ratio:.2f}×"),
    ]  # fmt: skip
    text = "Scored, chosen and repaired at every budget, without training or labels."
    return header(f"{name}, smaller and smaller", text, figures)
