"""Cluster the many points of attention maps into fewer prompts."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.cluster.vq import kmeans2
from tqdm import tqdm

from weaklabels.files import file_sha256
from weaksam.image_shards import difference
from weaksam.skipped import write_skipped

from .points import PointFile, Points, read_points, write_points


@dataclass(frozen=True)
class ClusterSettings:
    """k-means over all points of an image, whatever their class, head and layer.

    points_per_cluster: n points give n // this clusters, and at least one.
    rounds: steps of k-means.  restarts: random beginnings, of which the tightest result is taken.
    """

    points_per_cluster: int = 5
    rounds: int = 100
    restarts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.points_per_cluster, self.rounds, self.restarts) < 1:
            raise ValueError(f"{self}: everything but the seed must be 1 or more")


def cluster_points(
    source: str | Path, output: str | Path, settings: ClusterSettings | None = None
) -> PointFile:
    """Write the cluster centers of each image's points in `source` as a point file.

    Raises:
        ValueError: `source` holds no points, or the output is there and was made from others.
    """
    settings = settings or ClusterSettings()
    content = read_points(source)
    meta = content.meta | {"clusters": asdict(settings), "of": file_sha256(source)}
    if Path(output).exists():
        found = read_points(output)
        if changed := difference(found.meta, meta):
            raise ValueError(
                f"{output} was made with other {changed}; give another output, or remove it"
            )
        return found
    clusters, skipped = [], []
    for image_id, points in zip(
        content.ids, tqdm(content.points, "cluster", unit="image"), strict=True
    ):
        centers = cluster_centers(points.xy, settings)
        clusters.append(Points.of(centers, np.ones(len(centers))))
        if not len(centers):
            skipped.append({"image_id": image_id, "reason": "no point"})
    result = PointFile(content.ids, content.sizes_hw, tuple(clusters), meta)
    write_skipped(output, skipped)
    write_points(output, result)
    return result


def cluster_centers(xy: np.ndarray, settings: ClusterSettings) -> np.ndarray:
    """(n, 2) -> (k, 2) float32 centers in whole pixels, cut toward zero; none from none."""
    distinct = len(np.unique(xy, axis=0))
    if distinct == 0:
        return np.zeros((0, 2), np.float32)
    k = min(max(1, len(xy) // settings.points_per_cluster), distinct)
    rng = np.random.default_rng(settings.seed)
    best, least = np.zeros((0, 2)), np.inf
    for _ in range(settings.restarts):
        centers, label = _kmeans(xy.astype(np.float64), k, settings.rounds, rng)
        spread = ((xy - centers[label]) ** 2).sum()
        if spread < least:
            best, least = centers[np.unique(label)], spread  # an empty cluster is no prompt
    return np.trunc(best).astype(np.float32)


def _kmeans(
    xy: np.ndarray, k: int, rounds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Centers (k, 2) and the cluster of each point (n,)."""
    if k == len(xy):
        return xy, np.arange(k)
    return kmeans2(xy, k, iter=rounds, minit="++", rng=rng)
