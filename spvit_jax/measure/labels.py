"""Where the names of points in a figure go, so that none lies on another, or on a point."""

import itertools
import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top

RINGS = (11.0, 22.0, 35.0, 50.0, 70.0, 95.0, 125.0, 160.0, 210.0)  # pixels from point to name
BESIDE = RINGS[0] + 1  # so near that a name needs no line to its point
MARKER = 7.0  # half the side of what no name may cover around a point
GAP = 6.0  # left and right of a name, to the next
DIRECTIONS = (0, 180, 45, 135, 315, 225, 90, 270)  # degrees, the most readable first


def placed(points: Sequence[Point], sizes: Sequence[Point], bounds: Box) -> list[Box]:
    """Finds a place for the name of each point, as near as there is room.

    Names are placed one by one, each where it covers least of the names before it, of points, of
    the lines that lead to names, and of what is out of bounds; of such places at the nearest.

    Args:
      points: in pixels.
      sizes: width and height of their names.
      bounds: of what is visible.

    Returns:
      The box of each name.
    """
    markers = [(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in points]
    boxes: list[Box] = []
    wide: list[Box] = []  # with the gaps beside them
    lines: list[tuple[Point, Point]] = []
    for point, size in zip(points, sizes, strict=True):
        best, least = (0.0, 0.0, 0.0, 0.0), math.inf
        for distance, angle in itertools.product(RINGS, DIRECTIONS):
            box = _at(point, size, distance, angle)
            cost = _outside(box, bounds) + sum(_common(box, other) for other in markers + wide)
            line = (point, nearest(point, box))
            cost += sum(_crossed(other, box) for other in lines)
            cost += sum(_crossed(line, other) for other in boxes)
            if cost < least:
                best, least = box, cost
            if not least:
                break
        boxes.append(best)
        wide.append((best[0] - GAP, best[1], best[2] + GAP, best[3]))
        lines.append((point, nearest(point, best)))
    return boxes


def nearest(point: Point, box: Box) -> Point:
    """The point of a box that a line to it ends at."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _at(point: Point, size: Point, distance: float, angle: float) -> Box:
    """The box of a name in a direction from its point."""
    across, up = (round(f(math.radians(angle)), 6) for f in (math.cos, math.sin))
    x, y = point[0] + distance * across, point[1] + distance * up
    left = x - size[0] * (0.5 - 0.5 * _sign(across))
    bottom = y - size[1] * (0.5 - 0.5 * _sign(up))
    return left, bottom, left + size[0], bottom + size[1]


def _sign(value: float) -> float:
    return math.copysign(1, value) if value else 0.0


def _common(one: Box, two: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, bounds: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _common(box, bounds)


def _crossed(line: tuple[Point, Point], box: Box) -> float:
    """Pixels, about, of a line that run through a box."""
    (x, y), (u, v) = line
    steps = max(int(math.hypot(u - x, v - y) / 2), 1)
    at = [(x + (u - x) * i / steps, y + (v - y) * i / steps) for i in range(steps + 1)]
    return 2.0 * sum(box[0] < a < box[2] and box[1] < b < box[3] for a, b in at)
