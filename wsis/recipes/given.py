"""Checks of files that a user gives in place of a stage's results.

Each returns in a few words what the file holds, and raises ValueError where it is unfit.
"""

from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import meta_architecture
from maskrefinenet.checkpoint import load_checkpoint
from weaklabels.coco import CocoFile
from weaklabels.files import read_json
from weaklabels.merge import refuse_other_categories, refuse_shared_images
from weaklabels.records import read_records
from weaklabels.tags import read_tags
from weaksam.clues import read_points
from weaksam.clues.load import classifier_for
from weaksam.proposals.files import read_proposal_file
from weaksam.proposals.images import read_images
from wsis.config import load_config
from wsis.runner import Command
from wsis.trained_model import load_trained

SHOWN_IDS = 5  # of a list of unknown image ids


def check_network(path: Path, like: Path, command: Command) -> str:
    """A checkpoint with every tensor of the network of a command, for a label file's categories."""
    model = load_trained(network_config(path, like, command))
    return f"{len(model.state_dict())} tensors with the keys and shapes of the network"


def network_config(path: Path, like: Path, command: Command) -> CfgNode:
    """The config of a command with the weights at `path`, on the CPU."""
    pairs = [word for pair in command.config.items() for word in pair]
    cfg = load_config(str(command.flags["config-file"]), pairs, num_gpus=0)
    key = meta_architecture(cfg).num_classes_key
    if key:
        cfg.merge_from_list([key, len(CocoFile(like).category_ids)])
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


def check_refiner(path: Path, like: Path) -> str:
    """A MaskRefineNet, of ours or of the reference, for the categories of a label file."""
    checkpoint = load_checkpoint(path)
    try:
        checkpoint.build()
    except RuntimeError as error:  # load_state_dict, where a tensor has another shape
        raise ValueError(f"{path} does not fit MaskRefineNet: {error}") from error
    wanted = sorted(CocoFile(like).header["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in wanted]
    if checkpoint.categories is not None:
        found = [category["name"] for category in checkpoint.categories]
    else:  # the reference stores no names
        found = names if checkpoint.config.num_classes == len(names) else []
    if found != names and not checkpoint.config.class_agnostic:
        classes = len(found) or checkpoint.config.num_classes
        raise ValueError(
            f"{path} was trained for other categories ({classes}) than those of {like} "
            f"({len(names)})"
        )
    recipe = f", recipe: {checkpoint.recipe}" if checkpoint.recipe else ""
    return f"{len(checkpoint.model_state)} tensors, {checkpoint.config.encoder}{recipe}"


def check_labels(path: Path, like: Path) -> str:
    """A label file with the categories of another one."""
    labels = CocoFile(path)
    refuse_other_categories(CocoFile(like), labels)
    count = sum(1 for _ in labels.annotations())
    return f"{count} annotations in {len(labels.images)} images"


def check_weak_labels(path: Path, like: Path, strong: Path) -> str:
    """The weak part of a split: it shares categories with its strong part, and no image."""
    weak = CocoFile(path)
    refuse_shared_images(CocoFile(strong), weak.images, path)
    return check_labels(path, like)


def check_merged(path: Path, like: Path, strong: Path, weak: Path) -> str:
    """The student's label file; its images are those of the split, where that is there."""
    if strong.exists() and weak.exists():
        known = {*CocoFile(strong).images, *CocoFile(weak).images}
        refuse_unknown_images(path, CocoFile(path).images, known, f"{strong} and {weak}")
    return check_labels(path, like)


def check_records(path: Path, labels: Path) -> str:
    """Records of images of a label file, with its categories."""
    known = CocoFile(labels)
    images, instances = [], 0
    for where, record in read_records(path):
        images.append(record["image_id"])
        instances += len(record["instances"])
        for instance in record["instances"]:
            if instance["category_id"] not in known.category_ids:
                raise ValueError(
                    f"{where}: category_id {instance['category_id']!r} is not in {labels}"
                )
    refuse_unknown_images(path, images, known.images, str(labels))
    return f"{instances} masks in {len(images)} of {len(known.images)} images"


def refuse_unknown_images(
    path: Path, images: Iterable[int], known: Iterable[int], source: str
) -> None:
    """ValueError where `path` has images that its source does not have."""
    unknown = sorted({*images} - {*known})
    if unknown:
        shown = ", ".join(map(str, unknown[:SHOWN_IDS])) + ", …" * (len(unknown) > SHOWN_IDS)
        raise ValueError(f"{path}: {len(unknown)} image ids are not in {source} (such as {shown})")


def check_json(path: Path) -> str:
    """A file of results or of figures."""
    content = read_json(path)
    return f"{len(content)} entries" if isinstance(content, list | dict) else "one value"


def check_tags(path: Path) -> str:
    """A tag file."""
    tags = read_tags(path)
    return f"{len(tags.images)} images, {len(tags.categories)} classes"


def check_classifier(path: Path, tags: Path) -> str:
    """A classifier, ours or a released one, for the classes of a tag file."""
    model = classifier_for(path, read_tags(tags))
    return f"{type(model).__name__} of {model.num_classes} classes"


def check_points(path: Path) -> str:
    """Points of clues."""
    points = read_points(path)
    return f"{sum(map(len, points.points))} points in {len(points)} images"


def check_proposals(path: Path, tags: Path) -> str:
    """Proposals of the images of a tag file."""
    found = read_proposal_file(path, read_images(tags))
    return f"{len(found.boxes)} boxes in {len(found.ids)} images"


def check_boxes(path: Path) -> str:
    """A label file each of whose annotations has a box."""
    return _check_instances(path, "bbox")


def check_masks(path: Path) -> str:
    """A label file each of whose annotations has a mask."""
    return _check_instances(path, "segmentation")


def _check_instances(path: Path, key: str) -> str:
    labels, count = CocoFile(path), 0
    for annotation in labels.annotations():
        if not annotation.get(key):
            raise ValueError(f"{path}: annotation id {annotation.get('id')} has no {key}")
        count += 1
    if not count:
        raise ValueError(f"{path} has no annotation to learn from")
    return f"{count} annotations in {len(labels.images)} images"
