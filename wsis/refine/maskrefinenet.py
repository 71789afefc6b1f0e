"""MaskRefineNet as a refiner, and its training, each on all processes of a job."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from detectron2.utils import comm
from maskrefinenet import MaskRefiner
from maskrefinenet.distributed import World
from maskrefinenet.pipeline import make_groups, refine_groups
from maskrefinenet.train_run import TrainSettings, train
from weaklabels.records import Record
from wsis.launcher import SHARED_WORK_TIMEOUT, Job, device_of, launch

from .protocol import RefinedGroup, Refiner


class MaskRefineNetRefiner(Refiner):
    """A trained MaskRefineNet; crops of several images go through the network together."""

    def __init__(self, network: MaskRefiner):
        self.network = network
        self.category_ids = network.category_ids

    @classmethod
    def load(cls, weights: Path, device: torch.device, batch_size: int) -> "MaskRefineNetRefiner":
        """From a checkpoint of `wsis train-refiner`, or a released one."""
        return cls(MaskRefiner.load(weights, device=device, batch_size=batch_size))

    def refine(
        self, image_rgb: np.ndarray, masks: np.ndarray, points: np.ndarray, class_ids: np.ndarray
    ) -> tuple[np.ndarray, None]:
        return self.network.refine(image_rgb, masks, points, class_ids), None

    def groups(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        return make_groups(records)

    def refine_groups(
        self,
        groups: Iterable[list[Record]],
        image_root: Path,
        *,
        workers: int,
        category_ids: tuple[int, ...] | None,
    ) -> Iterator[RefinedGroup]:
        ids = self.category_ids or category_ids
        for group in refine_groups(
            groups, self.network, image_root, workers=workers, category_ids=ids
        ):
            yield RefinedGroup(group.records, group.unreadable, group.network_seconds)


def train_refiner(settings: TrainSettings, job: Job) -> None:
    """Train MaskRefineNet in the processes of a job."""
    launch(job, _train, settings, job, timeout=SHARED_WORK_TIMEOUT)


def _train(settings: TrainSettings, job: Job) -> None:
    train(settings, World(comm.get_rank(), comm.get_world_size(), device_of(job)))
