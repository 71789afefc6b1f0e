"""A small run of weaksam_voc07.sh, killed once in every stage: it finishes all the same."""

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
    *("wsod", "wsod_boxes", "wsod_quality"),
)
SMALL = (
    *("bash", "scripts/weaksam_voc07.sh", "--segmenter", "tiny", "--proposal-options", "--grid 3"),
    *("--classifier", "--network resnet --epochs 1 --size 32 --batch-size 10 --workers 0"),
    *("--points", "--scales 1.0"),
    *("MODEL.WEIGHTS", "", "MODEL.VGG.WIDTH", "0.0625", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.WSOD.MIN_BOX_SIDE", "4", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.CHECKPOINT_PERIOD", "1"),
    *("SOLVER.IMS_PER_BATCH", "2", "TEST.AUG.MIN_SIZES", "(64,)", "DATALOADER.NUM_WORKERS", "0"),
)


def make_voc(folder: Path) -> None:
    """VOC2007 with a square of its own color for each class: 20 images to train on, 4 to test."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (len(CLASS_NAMES), 3))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    names = [f"{number:06}" for number in range(1, 25)]
    for number, name in enumerate(names):
        picture = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
        objects = []
        for x, index in ((2, number % 20), (34, (number + 7) % 20)):
            y = int(rng.integers(2, 34))
            picture[y : y + 26, x : x + 26] = colors[index]
            box = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + 26, y + 26), strict=True)
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in box)
            objects.append(
                f"<object><name>{CLASS_NAMES[index]}</name><difficult>0</difficult>"
                f"<bndbox>{corners}</bndbox></object>"
            )
        Image.fromarray(picture).save(folder / "JPEGImages" / f"{name}.jpg")
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        text = f"<annotation>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for split, part in (("trainval", names[:20]), ("test", names[20:])):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(part) + "\n")


@pytest.mark.slow
def test_killed_in_every_stage_the_run_finishes(tmp_path):
    datasets, output = tmp_path / "datasets", tmp_path / "output"
    make_voc(datasets / "VOC2007")
    begin = partial(start, SMALL, datasets, output)
    for stage in STAGES:
        kill_in(stage, begin, output, "Saving checkpoint" if stage == "wsod" else f"] {stage}: ")
    printed = finish(begin())
    assert all(f"] {stage}: finished, skipped" in printed for stage in STAGES[:-1])
    assert {state(output, stage) for stage in STAGES} == {FINISHED}
    assert "CorLoc" in json.loads((output / "wsod_quality.json").read_text())
    summary = json.loads((output / "wsod" / "inference_TTA" / "summary.json").read_text())
    assert "AP50" in summary["results"]["bbox_TTA"]
    model = output / "wsod" / "model_final.pth"
    before = model.stat().st_mtime_ns
    assert "Nothing to do" in finish(begin())
    assert model.stat().st_mtime_ns == before
