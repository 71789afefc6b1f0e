"""A small whole run of weaksam_voc12.sh, killed in every stage: it finishes all the same."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.wsis.killing import finish, kill_in, start, state
from weaklabels.voc import CLASS_NAMES
from wsis.runner.markers import FINISHED

STAGES = (
    *("tags_train", "tags_clues", "tags_test", "classifier", "points_train", "points_test"),
    *("proposals_train_points", "proposals_test_points", "recall"),
    *("wsod", "wsod_boxes", "wsod_quality", "pseudo_boxes", "pseudo_boxes_quality"),
    *("retrain", "retrain_boxes", "mask_boxes", "masks", "mask_test", "segmenter"),
)
TRAININGS = ("wsod", "retrain", "segmenter")
SHORT = (
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.AUG.MIN_SIZES", "(64,)"),
    *("SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "1"),
    *("SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
)
NARROW = (
    *("MODEL.WEIGHTS", "''", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "10"),
    *("TEST.EVAL_PERIOD", "0"),
)
SMALL = (
    *("bash", "scripts/weaksam_voc12.sh", "--segmenter", "tiny", "--proposal-options", "--grid 3"),
    *("--classifier", "--network resnet --epochs 1 --size 32 --batch-size 10 --workers 0"),
    *("--points", "--scales 1.0"),
    *("--retrain", "faster_rcnn", "--retrain-options", " ".join((*NARROW, *SHORT))),
    *("--mask-boxes", "retrain", "--segmenter-options", " ".join((*NARROW, *SHORT))),
    *("MODEL.WEIGHTS", "", "MODEL.VGG.WIDTH", "0.0625", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.WSOD.MIN_BOX_SIDE", "4", *SHORT),
)


MASKS = ("SegmentationClass", "SegmentationObject", "ImageSets/Segmentation")


def make_voc(folder: Path) -> None:
    """VOC2012 with a square of its own color for each class: 20 images to train on, 4 to test.

    Of the latter and of one of the former there are masks, on which segmenters are measured.
    """
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (len(CLASS_NAMES), 3))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", *MASKS):
        (folder / name).mkdir(parents=True)
    names = [f"{number:06}" for number in range(1, 25)]
    for number, name in enumerate(names):
        picture = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
        objects, masks = [], np.zeros((2, 64, 64), np.uint8)
        for x, index in ((2, number % 20), (34, (number + 7) % 20)):
            y = int(rng.integers(2, 34))
            picture[y : y + 26, x : x + 26] = colors[index]
            masks[:, y : y + 26, x : x + 26] = [[[index + 1]], [[len(objects) + 1]]]
            box = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + 26, y + 26), strict=True)
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in box)
            objects.append(
                f"<object><name>{CLASS_NAMES[index]}</name><difficult>0</difficult>"
                f"<bndbox>{corners}</bndbox></object>"
            )
        Image.fromarray(picture).save(folder / "JPEGImages" / f"{name}.jpg")
        for kind, mask in zip(MASKS, masks, strict=False):
            Image.fromarray(mask).save(folder / kind / f"{name}.png")
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    lists = {"Main/trainval": names[:20], "Main/val": names[20:], "Segmentation/val": names[19:]}
    for split, part in lists.items():
        (folder / "ImageSets" / f"{split}.txt").write_text("\n".join(part) + "\n")


@pytest.mark.slow
def test_killed_in_every_stage_the_run_finishes(tmp_path):
    datasets, output = tmp_path / "datasets", tmp_path / "output"
    make_voc(datasets / "VOC2012")
    begin = partial(start, SMALL, datasets, output)
    for stage in STAGES:
        work = "Saving checkpoint" if stage in TRAININGS else f"] {stage}: "
        kill_in(stage, begin, output, work)
    printed = finish(begin())
    assert all(f"] {stage}: finished, skipped" in printed for stage in STAGES[:-1])
    assert {state(output, stage) for stage in STAGES} == {FINISHED}
    assert "CorLoc" in json.loads((output / "wsod_quality.json").read_text())
    summary = json.loads((output / "wsod" / "inference_TTA" / "summary.json").read_text())
    assert "AP50" in summary["results"]["bbox_TTA"]
    assert "f1" in json.loads((output / "pseudo_boxes_quality.json").read_text())
    learned = json.loads((output / "masks.json").read_text())
    assert len(learned["images"]) == 19 and learned["annotations"]
    summary = json.loads((output / "retrain" / "inference_TTA" / "summary.json").read_text())
    assert "AP50" in summary["results"]["bbox_TTA"]
    summary = json.loads((output / "segmenter" / "inference" / "summary.json").read_text())
    assert {"AP25", "AP50", "AP70", "AP75"} <= summary["results"]["segm"].keys()
    model = output / "segmenter" / "model_final.pth"
    before = model.stat().st_mtime_ns
    assert "Nothing to do" in finish(begin())
    assert model.stat().st_mtime_ns == before
