"""Clip polygons, also concave and self-crossing ones, to an axis-aligned rectangle.

Polygons are filled by the even-odd rule, as in the COCO API. A concave polygon may be cut into
several pieces, which are returned as separate polygons without bridges along the cut.
"""

import numpy as np


def clip_polygon(
    polygon: np.ndarray, x0: float, y0: float, x1: float, y1: float
) -> list[np.ndarray]:
    """The parts of `polygon` (N, 2; x, y) inside [x0, x1] x [y0, y1], in the same frame.

    Each piece is (M, 2) float64, M >= 3, in canonical order: counterclockwise on screen, from the
    vertex of smallest x (then y).
    """
    pieces = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2)]
    for axis, bound, sign in ((0, x0, 1.0), (0, x1, -1.0), (1, y0, 1.0), (1, y1, -1.0)):
        pieces = [cut for piece in pieces for cut in _clip_half_plane(piece, axis, bound, sign)]
    return [_canonical(piece) for piece in map(_drop_repeats, pieces) if _has_extent(piece)]


def _clip_half_plane(polygon: np.ndarray, axis: int, bound: float, sign: float) -> list[np.ndarray]:
    """Pieces of `polygon` where sign * (coordinate[axis] - bound) >= 0."""
    distance = sign * (polygon[:, axis] - bound)
    inside = distance >= 0
    if inside.all():
        return [polygon]
    if not inside.any():
        return []
    start = int(np.argmin(inside))  # a vertex outside, so that no chain wraps around
    polygon, distance, inside = (np.roll(a, -start, axis=0) for a in (polygon, distance, inside))
    chains = _inside_chains(polygon, distance, inside, axis, bound)
    return _join_chains(chains, along=1 - axis)


def _inside_chains(
    polygon: np.ndarray, distance: np.ndarray, inside: np.ndarray, axis: int, bound: float
) -> list[np.ndarray]:
    """Runs of vertices inside, each with the crossing points at both ends."""
    following = np.roll(np.arange(len(polygon)), -1)
    crossing = np.flatnonzero(inside != inside[following])  # edge i goes from i to i + 1
    ends = following[crossing]
    share = distance[crossing] / (distance[crossing] - distance[ends])
    points = polygon[crossing] + share[:, None] * (polygon[ends] - polygon[crossing])
    points[:, axis] = bound
    return [
        np.vstack([points[k], polygon[crossing[k] + 1 : crossing[k + 1] + 1], points[k + 1]])
        for k in range(0, len(crossing), 2)
    ]


def _join_chains(chains: list[np.ndarray], along: int) -> list[np.ndarray]:
    """Close chains along the cut: by even-odd filling it is inside from crossing 1 to 2, 3 to 4."""
    positions = np.array([end[along] for chain in chains for end in (chain[0], chain[-1])])
    order = np.argsort(positions, kind="stable")
    partner = np.empty_like(order)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    unused = set(range(len(chains)))
    polygons = []
    while unused:
        end = first = 2 * min(unused)  # ends 2k and 2k + 1 are the first and last of chain k
        parts = []
        while True:
            chain = chains[end // 2]
            unused.remove(end // 2)
            parts.append(chain if end % 2 == 0 else chain[::-1])
            end = int(partner[end ^ 1])
            if end == first:
                break
        polygons.append(np.concatenate(parts))
    return polygons


def _drop_repeats(polygon: np.ndarray) -> np.ndarray:
    return polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)]


def _has_extent(polygon: np.ndarray) -> bool:
    return len(polygon) >= 3 and bool((np.ptp(polygon, axis=0) > 0).all())


def _canonical(polygon: np.ndarray) -> np.ndarray:
    x, y = polygon.T
    if np.dot(x, np.roll(y, -1)) > np.dot(y, np.roll(x, -1)):
        polygon = polygon[::-1]
    first = np.lexsort((polygon[:, 1], polygon[:, 0]))[0]
    return np.roll(polygon, -first, axis=0)
