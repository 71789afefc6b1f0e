"""Turn the instance masks of Pascal VOC 2012 into COCO files, those of SBD with them.

SBD's masks are taken where VOC has none of its own. Image ids are the digits of VOC's names
(2007_000032 is 2007000032), category ids are 1 to 20, aeroplane to tvmonitor. Pixels that VOC calls
void belong to no instance.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm import tqdm

from weaklabels.masks import make_annotation
from weaklabels.pictures import image_size_hw, open_image, passed_over, refuse_all_skipped
from weaklabels.voc import CLASS_NAMES, read_image_set, voc_image_id

VOID = 255  # borders and regions that VOC leaves open
SBD_LISTS = ("train.txt", "val.txt")
SBD_URL = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz"
)
# what scipy raises for files that are cut off, damaged, of another version or about other things
MAT_ERRORS = (
    *(MatReadError, KeyError, IndexError, ValueError, TypeError, OSError, zlib.error),
    NotImplementedError,
)

Instances = list[tuple[int, np.ndarray]]  # category id from 1, mask (H, W) bool


def read_index_png(path: Path, where: str) -> np.ndarray:
    """The (H, W) uint8 palette indices of a PNG."""
    if not path.is_file():
        raise FileNotFoundError(f"{where} needs {path}, which is not there")
    with open(path, "rb") as file:
        image = open_image(file, path)
    if image.mode not in ("P", "L"):
        raise ValueError(
            f"{path}: mode {image.mode}; expected VOC's PNG with a palette, whose indices count "
            "(saving it in colors loses these)"
        )
    return np.asarray(image)


def read_voc_masks(voc: Path, name: str) -> Instances:
    """Instances of SegmentationObject, of the class that most of their pixels have."""
    path = voc / "SegmentationObject" / f"{name}.png"
    objects = read_index_png(path, f"image {name}")
    classes = read_index_png(voc / "SegmentationClass" / f"{name}.png", str(path))
    if classes.shape != objects.shape:
        raise ValueError(f"{path}: {objects.shape}, but SegmentationClass has {classes.shape}")
    instances: Instances = []
    for number in np.unique(objects):
        if number in (0, VOID):
            continue
        mask = objects == number
        votes = np.bincount(classes[mask], minlength=VOID + 1)
        if votes[len(CLASS_NAMES) + 1 : VOID].any() or not votes[1:VOID].any():
            raise ValueError(
                f"{path}: object {number} has the classes {np.flatnonzero(votes).tolist()} in "
                f"SegmentationClass; expected one of 1 to {len(CLASS_NAMES)}"
            )
        instances.append((int(votes[1:VOID].argmax()) + 1, mask))
    return instances


def read_sbd_masks(sbd: Path, name: str) -> Instances:
    """Instances of SBD's inst/NAME.mat."""
    path = sbd / "inst" / f"{name}.mat"
    if not path.is_file():
        raise FileNotFoundError(
            f"image {name} has neither a mask of VOC's nor {path}. Download {SBD_URL} and give its "
            "folder benchmark_RELEASE/dataset as --sbd"
        )
    try:
        truth = loadmat(path)["GTinst"][0, 0]
        segmentation, categories = truth["Segmentation"], truth["Categories"].ravel()
    except MAT_ERRORS as error:
        raise ValueError(f"{path} holds no 'GTinst' as SBD's files do: {error!r}") from error
    numbers = np.setdiff1d(np.unique(segmentation), [0])
    if len(numbers) and numbers.max() > len(categories):
        raise ValueError(f"{path}: instance {numbers.max()} of {len(categories)} categories")
    for category in categories:
        if not 1 <= category <= len(CLASS_NAMES):
            raise ValueError(f"{path}: category {category}; expected 1 to {len(CLASS_NAMES)}")
    return [(int(categories[number - 1]), segmentation == number) for number in numbers]


def image_names(voc: Path, split: str, sbd: Path | None, without: str | None) -> list[str]:
    """Sorted names of the images: a split of VOC's and all of SBD's, less another split."""
    lists = voc / "ImageSets" / "Segmentation"
    names = set(read_image_set(str(lists / f"{split}.txt")))
    if sbd is not None:
        for path in (sbd / name for name in SBD_LISTS):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is not there. Download {SBD_URL} and give its folder "
                    "benchmark_RELEASE/dataset as --sbd"
                )
            names |= set(read_image_set(str(path)))
    if without is not None:
        names -= set(read_image_set(str(lists / f"{without}.txt")))
    return sorted(names)


def _converted(
    voc: Path, sbd: Path | None, names: list[str], skipped: list[str] | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """COCO's image and its annotations, these yet without `id`, of each name."""
    for name in tqdm(names, "masks", unit="image"):
        file_name, found = f"{name}.jpg", None
        own = sbd is None or (voc / "SegmentationObject" / f"{name}.png").is_file()
        with passed_over(skipped):
            size_hw = image_size_hw(voc / "JPEGImages" / file_name, f"image {name}")
            found = size_hw, read_voc_masks(voc, name) if own else read_sbd_masks(sbd, name)
        if found is None:
            continue
        (height, width), instances = found
        image = {"id": voc_image_id(name), "file_name": file_name, "height": height, "width": width}
        annotations = []
        for category_id, mask in instances:
            if mask.shape != (height, width):
                raise ValueError(
                    f"image {name} is {(height, width)}, its masks are {mask.shape} (height, width)"
                )
            rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append({"image_id": image["id"]} | make_annotation(category_id, rle))
        yield image, annotations


def convert_voc(
    voc: Path,
    split: str,
    sbd: Path | None = None,
    without: str | None = None,
    skipped: list[str] | None = None,
) -> dict[str, Any]:
    """Content of the COCO file of a list of `ImageSets/Segmentation`.

    Args:
        voc: folder VOC2012 of the devkit.
        sbd: SBD's folder `dataset`: its images are added.
        without: a list whose images are left out.
        skipped: gets a message for each image whose file or masks cannot be read, which is left
            out; None: the first of them is an error.
    """
    images, annotations = [], []
    for image, found in _converted(voc, sbd, image_names(voc, split, sbd, without), skipped):
        images.append(image)
        for annotation in found:
            annotations.append({"id": len(annotations) + 1} | annotation)
    refuse_all_skipped(skipped or [], len(images))
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
