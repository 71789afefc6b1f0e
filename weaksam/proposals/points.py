"""Read the clue points that prompt a segmenter: points.npz, rows of an image lying together."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weaklabels.arrays import read_npz

KEYS = ("ids", "offsets", "xy", "cls", "score", "head", "layer", "sizes")


@dataclass(frozen=True)
class PointFile:
    """Points of N images; those of image i are the rows offsets[i] to offsets[i + 1].

    ids: (N,) str.  offsets: (N + 1,) int64.  xy: (P, 2) float32, pixel centers of the original
    image.  classes: (P,) int, contiguous from 0.  sizes: (N, 2) int, height and width.
    """

    ids: np.ndarray
    offsets: np.ndarray
    xy: np.ndarray
    classes: np.ndarray
    sizes: np.ndarray

    def by_image(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(xy, classes) of each image by its id."""
        spans = zip(self.ids, self.offsets[:-1], self.offsets[1:], strict=True)
        return {str(name): (self.xy[a:b], self.classes[a:b]) for name, a, b in spans}


def read_points(path: str | Path) -> PointFile:
    """Read and check a points file; errors name it and the image."""
    arrays = read_arrays(path, KEYS, "clue points")
    ids, offsets, sizes = arrays["ids"].astype(str), arrays["offsets"], arrays["sizes"]
    count = check_offsets(path, ids, offsets, sizes)
    xy = arrays["xy"].reshape(-1, 2).astype(np.float32)
    lengths = {key: len(arrays[key]) for key in ("xy", "cls", "score", "head", "layer")}
    if set(lengths.values()) != {count}:
        raise ValueError(f"{path}: offsets end at {count} points, but the arrays have {lengths}")
    image_of = np.repeat(np.arange(len(ids)), np.diff(offsets))
    limits = sizes[image_of][:, ::-1] - 0.5  # pixel centers go up to the side less one
    bad = ~(np.isfinite(xy) & (xy >= -0.5) & (xy < limits)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        image = image_of[row]
        raise ValueError(
            f"{path}: image {ids[image]} has a point {xy[row].tolist()} outside its "
            f"{sizes[image].tolist()} (height, width) pixels"
        )
    return PointFile(ids, offsets, xy, arrays["cls"].astype(np.int64), sizes)


def read_arrays(path: str | Path, keys: tuple[str, ...], what: str) -> dict[str, np.ndarray]:
    """Arrays of an npz file, without pickles; an error that names it where it is no such file."""
    return read_npz(path, keys, what)


def check_offsets(path: str | Path, ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> int:
    """Check what every file of rows by image has; returns the number of rows."""
    if offsets.shape != (len(ids) + 1,) or sizes.shape != (len(ids), 2):
        raise ValueError(
            f"{path}: {len(ids)} ids need {len(ids) + 1} offsets and {len(ids)} sizes, got "
            f"{offsets.shape} and {sizes.shape}"
        )
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path}: offsets have to start at 0 and never fall")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: image {names[counts > 1][0]} occurs twice")
    return int(offsets[-1])
