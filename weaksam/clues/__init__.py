"""From image tags to points: classifiers, where they see classes, and the peaks of that."""

from .cam import CAMConfig, lite0_config, small_resnet_config
from .checkpoint import load_classifier, save_classifier
from .cluster import ClusterSettings, cluster_points
from .data import Augmentation, TaggedDataset
from .extract import RELEASED_LAYERS, PointSettings, extract_points
from .peaks import PeakSettings
from .points import PointFile, Points, read_points, write_points
from .train import TrainSettings, cam_settings, train_classifier, weaktr_settings
from .weaktr import WeakTrConfig
from .weaktr_weights import initialize_from_deit, read_weaktr

__all__ = [
    "RELEASED_LAYERS",
    "Augmentation",
    "CAMConfig",
    "ClusterSettings",
    "PeakSettings",
    "PointFile",
    "PointSettings",
    "Points",
    "TaggedDataset",
    "TrainSettings",
    "WeakTrConfig",
    "cam_settings",
    "cluster_points",
    "extract_points",
    "initialize_from_deit",
    "lite0_config",
    "load_classifier",
    "read_points",
    "read_weaktr",
    "save_classifier",
    "small_resnet_config",
    "train_classifier",
    "weaktr_settings",
    "write_points",
]
