"""Masks for the boxes of a label file: each box prompts a segmenter (SPEC_WEAKSAM 7).

In comes COCO JSON with boxes, out goes the same with masks as compressed RLE, each box tightened to
its mask. Boxes whose mask is empty are left out and counted. Images are made one by one, so that a
killed run goes on; what comes out does not depend on the number of processes.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detectron2.utils import comm
from weaklabels.coco import CocoFile, CocoWriter
from weaklabels.files import atomic_text, file_sha256, read_json, write_json
from weaklabels.masks import encode_mask, mask_fields
from weaksam.detections import box_in_image
from weaksam.image_shards import claim, difference, make_shards
from weaksam.proposals.images import ImageRecord, read_rgb
from weaksam.segmenters.protocol import Segmenter

SINGLE, BEST_IOU = "single", "best_iou"
PICKS = (SINGLE, BEST_IOU)
MANIFEST = "manifest.json"
CARRIED = ("score", "score_normalized")  # what an annotation keeps of its box


@dataclass(frozen=True)
class BoxMaskCounts:
    """masks: written.  empty: boxes without one, left out.  images: all, with boxes or without."""

    images: int
    masks: int
    empty: int


def make_box_masks(
    boxes: Path, image_root: Path, segmenter: Segmenter, output: Path, pick: str = SINGLE
) -> BoxMaskCounts:
    """Write OUTPUT, COCO JSON of masks; every process of a job calls it with the same arguments.

    Its `info` is that of the boxes, and in `masks` the segmenter and how its masks were picked.
    Crowds are left out.

    Args:
        boxes: COCO JSON with `bbox`; any masks in it are not looked at.
        image_root: folder of the file names.
        pick: "single", the segmenter's one mask of a box, or "best_iou", of its three the one of
            the highest predicted IoU.

    Raises:
        ValueError: an input cannot be used, or the output is there and was made from others.
    """
    if pick not in PICKS:
        raise ValueError(f"pick={pick!r}; expected one of {PICKS}")
    if "boxes" not in segmenter.prompts:
        raise ValueError(
            f"segmenter {segmenter.identity} takes {' and '.join(sorted(segmenter.prompts))} only; "
            "masks of boxes need one that takes boxes, such as grabcut, tiny or segment_anything"
        )
    file = CocoFile(boxes)
    made_from = {"boxes": file_sha256(boxes), "segmenter": segmenter.identity, "pick": pick}
    folder = output.with_name(output.name + ".shards")
    if output.exists():
        counts = _already_made(output, made_from)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed at its very end
        return counts
    by_image = _boxes_by_image(file)
    claim(folder / MANIFEST, made_from, "masks")
    images = list(file.images.values())
    shards = [folder / f"{image['id']}.json" for image in images]

    def make(index: int) -> None:
        own = by_image[images[index]["id"]]
        write_json(shards[index], _of_image(images[index], own, image_root, segmenter, pick))

    make_shards(shards, make, "masks")
    if comm.is_main_process():
        _finish(file, shards, made_from, output)
        shutil.rmtree(folder)
    comm.synchronize()
    return _already_made(output, made_from)


def box_masks(
    segmenter: Segmenter, image: np.ndarray, boxes_xyxy: np.ndarray, pick: str = SINGLE
) -> Iterator[tuple[int, np.ndarray, float]]:
    """(row, mask (H, W) bool, predicted IoU) of each box, in the order of the segmenter's batches.

    Args:
        image: uint8 RGB (H, W, 3).
        boxes_xyxy: (N, 4) half-open boxes in pixels.
    """
    segmenter.set_image(image)
    for batch in segmenter.boxes(boxes_xyxy, multimask=pick == BEST_IOU):
        best = batch.predicted_iou.argmax(dim=1).tolist()
        masks = batch.masks.cpu().numpy()
        for place, (row, choice) in enumerate(zip(batch.prompts.tolist(), best, strict=True)):
            yield row, masks[place, choice], float(batch.predicted_iou[place, choice])


def _boxes_by_image(file: CocoFile) -> dict[int, list[dict[str, Any]]]:
    """The annotations of each image that are no crowds; ValueError for a box not in its image."""
    found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in file.images}
    for annotation in file.annotations():
        if annotation.get("iscrowd"):
            continue
        where = f"{file.path}: annotation id {annotation['id']}"
        if "bbox" not in annotation:
            raise ValueError(f"{where} has no bbox; masks of boxes need boxes")
        image = file.images[annotation["image_id"]]
        box = box_in_image(where, annotation["bbox"], image["width"], image["height"])
        found[image["id"]].append(annotation | {"bbox": box})
    return found


def _of_image(
    image: dict[str, Any],
    annotations: list[dict[str, Any]],
    image_root: Path,
    segmenter: Segmenter,
    pick: str,
) -> dict[str, Any]:
    """A shard: `annotations` without ids, in the order of the boxes, and how many were `empty`."""
    if not annotations:
        return {"annotations": [], "empty": 0}
    record = ImageRecord(
        str(image["id"]), image["file_name"], size_hw=(image["height"], image["width"])
    )
    boxes = np.array([a["bbox"] for a in annotations], np.float64)
    boxes[:, 2:] += boxes[:, :2]
    found = {}
    for row, mask, predicted_iou in box_masks(segmenter, read_rgb(record, image_root), boxes, pick):
        if mask.any():
            found[row] = _annotation(annotations[row], mask, predicted_iou)
    rows = [found[row] for row in sorted(found)]
    return {"annotations": rows, "empty": len(annotations) - len(rows)}


def _annotation(box: dict[str, Any], mask: np.ndarray, predicted_iou: float) -> dict[str, Any]:
    """An annotation, yet without id; `predicted_iou` only where the segmenter predicts it."""
    fields = mask_fields(encode_mask(mask))
    result = {"image_id": box["image_id"], "category_id": box["category_id"], "iscrowd": 0}
    result |= {key: fields[key] for key in ("area", "bbox", "segmentation")}
    result |= {key: box[key] for key in CARRIED if key in box}
    if np.isfinite(predicted_iou):
        result["predicted_iou"] = predicted_iou
    return result


def _finish(file: CocoFile, shards: list[Path], made_from: dict[str, Any], output: Path) -> None:
    """Write the output from the shards of all images; its counts are in `info`."""
    masks = empty = 0
    for shard in shards:
        content = _read_shard(shard)
        masks, empty = masks + len(content["annotations"]), empty + content["empty"]
    info = file.header.get("info")
    info = (info if isinstance(info, dict) else {}) | {
        "masks": made_from | {"images": len(shards), "masks": masks, "empty": empty}
    }
    with atomic_text(output) as handle:
        writer = CocoWriter(handle, file.header | {"info": info}, file.path)
        for shard in shards:
            for annotation in _read_shard(shard)["annotations"]:
                writer.add({"id": writer.count + 1} | annotation)
        writer.close()


def _read_shard(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"annotations", "empty"} <= content.keys():
        raise ValueError(f"{path} is no shard of masks: delete it and run again")
    return content


def _already_made(output: Path, made_from: dict[str, Any]) -> BoxMaskCounts:
    """The counts of a whole output; ValueError where it was made from something else."""
    info = CocoFile(output).header.get("info")
    masks = info.get("masks") if isinstance(info, dict) else None
    if changed := difference(masks, made_from):
        raise ValueError(
            f"{output} was made with other {changed}; give another output, or remove it"
        )
    return BoxMaskCounts(masks["images"], masks["masks"], masks["empty"])
