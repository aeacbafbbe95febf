"""Pictures of what token merging makes of an image: patches that became one share a colour."""

import numpy as np

GAP = 12  # pixels between the image and its mosaic


def mosaic(image: np.ndarray, sources: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Draws an image and, on its right, the same with each group of patches in its mean colour.

    A line of a lighter or darker shade runs round a group. A patch that is alone keeps its pixels.

    Args:
      image: uint8 ``[H, W, 3]``, of ``grid`` patches.
      sources: the group of each patch, row by row, ``[rows * columns]``.
      grid: rows and columns of patches.

    Returns:
      uint8 ``[H, 2 W + GAP, 3]``.
    """
    (height, width, _), (rows, columns) = image.shape, grid
    down, right = height // rows, width // columns
    groups, sizes = np.unique(sources, return_inverse=True, return_counts=True)[1:]
    groups = groups.reshape(grid)
    patches = image.reshape(rows, down, columns, right, 3)
    sums = np.zeros((len(sizes), 3))
    np.add.at(sums, groups, patches.sum((1, 3), dtype=float))
    means = sums / (sizes * down * right)[:, None]
    each = groups.repeat(down, 0).repeat(right, 1)
    edge, merged = _edges(each), sizes[each] > 1
    painted = image.copy()
    painted[merged] = np.rint(means)[each[merged]]
    painted[merged & edge] = np.rint(_shades(means))[each[merged & edge]]
    between = np.full((height, GAP, 3), 255, np.uint8)
    return np.concatenate([image, between, painted], axis=1)


def _edges(groups: np.ndarray) -> np.ndarray:
    """The pixels ``[H, W]`` beside one of another group, across or down."""
    edges = np.zeros(groups.shape, bool)
    for axis in (0, 1):
        a, e = groups.swapaxes(0, axis), edges.swapaxes(0, axis)
        other = a[1:] != a[:-1]
        e[1:] |= other
        e[:-1] |= other
    return edges


def _shades(colours: np.ndarray) -> np.ndarray:
    """For each colour ``[n, 3]`` one to be seen on it: half way to white, or of light to black."""
    light = colours @ [0.299, 0.587, 0.114] > 140
    return np.where(light[:, None], colours * 0.5, (colours + 255) / 2)
