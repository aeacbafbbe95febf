"""A line chart as SVG, to stand inside an HTML page whose style sheet colours it."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26  # pixels around what is drawn
POINTS = 400  # of a line at most; a long training logs more
COLOURS = 3  # classes line1, line2, ... of the style sheet

Point = tuple[float, float]


def chart(
    title: str, lines: Mapping[str, Sequence[Point]], x: str, mark: tuple[str, float] | None = None
) -> str:
    """Draws lines over steps, from 0 on upwards.

    Args:
      title: text above.
      lines: by name, points of ascending x; those that are not finite are left out.
      x: what is counted there.
      mark: the name and height of a dashed line, or None.

    Returns:
      A ``<figure>``; "" where no line has a point.
    """
    kept = {name: thinned([p for p in line if math.isfinite(p[1])]) for name, line in lines.items()}
    kept = {name: line for name, line in kept.items() if line}
    if not kept:
        return ""
    points = [point for line in kept.values() for point in line]
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    heights = [p[1] for p in points] + ([mark[1]] if mark else [])
    step = tick(max(heights) - min(0.0, *heights))
    low = step * math.floor(min(0.0, *heights) / step)
    high = step * max(math.ceil(max(heights) / step), 1)

    def at(point: Point) -> str:
        across = (point[0] - first) / (last - first) if last > first else 0.5
        return f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},{_down(point[1], low, high):.1f}"

    drawn = [_grid(low, high, step), _steps(first, last, x)]
    if mark:
        y = f"{_down(mark[1], low, high):.1f}"
        drawn.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    legend = []
    for number, (name, line) in enumerate(kept.items()):
        colour = f"line{number % COLOURS + 1}"
        if len(line) > 1:
            drawn.append(f'<polyline class="{colour}" points="{" ".join(map(at, line))}"/>')
        end = at(line[-1]).split(",")
        drawn.append(f'<circle class="{colour}" cx="{end[0]}" cy="{end[1]}" r="3.5"/>')
        labels = [f"{y:.4g} at {x} {place:,.0f}" for place, y in dict.fromkeys((line[0], line[-1]))]
        swatch = f'<i class="swatch {colour}"></i>'
        legend.append(f"<span>{swatch}{escape(name)}: {', '.join(labels)}</span>")
    if mark:
        legend.append(f"<span>dashed: {escape(mark[0])}</span>")
    return (
        f'<figure><h3>{escape(title)}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"<figcaption>{' '.join(legend)}</figcaption></figure>"
    )


def thinned(line: Sequence[Point]) -> list[Point]:
    """At most ``POINTS`` of a line's points, evenly spread, the first and the last among them."""
    if len(line) <= POINTS:
        return list(line)
    return [line[round(i * (len(line) - 1) / (POINTS - 1))] for i in range(POINTS)]


def tick(extent: float) -> float:
    """The distance of grid lines, 1, 2 or 5 times a power of ten, that gives about four of them."""
    if extent <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(extent / 4))
    return next((n * power for n in (1, 2, 5) if n * power >= extent / 4), 10 * power)


def _down(value: float, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _grid(low: float, high: float, step: float) -> str:
    lines = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = _down(value, low, high)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    return "".join(lines)


def _steps(first: float, last: float, x: str) -> str:
    y = HEIGHT - 6
    ends = f'<text x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{escape(x)} {last:,.0f}</text>'
    return f'<text x="{LEFT}" y="{y}">{first:,.0f}</text>{ends}' if last > first else ends
