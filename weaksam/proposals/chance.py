"""A detector that knows nothing: the yardstick at the lower end."""

import numpy as np

from weaklabels.tags import Tags
from weaksam.detections import Detections
from weaksam.proposals.files import Proposals


def random_detections(proposals: Proposals, tags: Tags, seed: int = 0) -> Detections:
    """Every proposal as a detection of each class, with scores by chance.

    Args:
        proposals: of the images of the tags.
    """
    rng = np.random.default_rng(seed)
    place = {str(image.id): row for row, image in enumerate(tags.images)}
    images = np.repeat([place[name] for name in proposals.ids], np.diff(proposals.offsets))
    num_classes = len(tags.categories)
    corners = np.repeat(proposals.boxes.astype(np.float64), num_classes, axis=0)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    classes = np.tile(np.arange(num_classes), len(images))
    return Detections(
        np.repeat(images, num_classes).astype(np.int64),
        classes.astype(np.int64),
        boxes,
        rng.random(len(boxes)),
    )
