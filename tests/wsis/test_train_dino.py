"""`wsis train` with DINO: the published configs, resume, refusals, real images."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import register_pascal_voc
from tests.wsis.test_schedules import value_of
from weaklabels.shapes.dataset import make_shapes
from wsis.cli.main import program
from wsis.config import load_config

pytest.importorskip("transformers")  # the extra [sam]

main = partial(program, "train")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "WeakSAM"
REAL = ROOT.parent / "shared" / "data"
SCHEDULES = json.loads((ROOT / "tests" / "golden" / "dino_schedules.json").read_text())
NAMES = ("dino_test_train", "dino_test_val")
SMALL = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.DINO.HIDDEN_DIM": 64,
    "MODEL.DINO.FFN_DIM": 64,
    "MODEL.DINO.ENC_LAYERS": 1,
    "MODEL.DINO.DEC_LAYERS": 2,
    "MODEL.DINO.NUM_QUERIES": 20,
    "MODEL.DINO.MIN_BOX_SIDE": 4,
    "MODEL.DINO.INSTANCE_DROP.OPERATE_ITER": 1,
    "INPUT.MIN_SIZE_TRAIN": (64, 80),
    "INPUT.CROP.SIZE": [48, 64],
    "INPUT.CROP.MIN_SIZES": (64, 80),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.AUG.MIN_SIZES": (64, 80),
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": (1,),
    "SOLVER.MAX_ITER": 2,
    "SOLVER.BASE_LR": 1e-3,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_traces():
    yield
    for name in NAMES:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, train=6, val=2, size=64, seed=0)
    return folder


def run(config, output, *flags, **changes):
    values = SMALL | {"OUTPUT_DIR": str(output)}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    words = [word for name, value in values.items() for word in (name, str(value))]
    return main(["--config-file", f"WeakSAM/{config}.yaml", "--num-gpus", "0", *flags, *words])


def run_shapes(shapes, output, *flags, **changes):
    datasets = [
        f"{name}={shapes}/annotations/instances_{split}.json:{shapes}/{split}"
        for name, split in zip(NAMES, ("train", "val"), strict=True)
    ]
    datasets = {"DATASETS.TRAIN": (datasets[0],), "DATASETS.TEST": (datasets[1],)}
    return run("dino_voc07", output, *flags, **(datasets | changes))


def metrics_of(output):
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_a_killed_training_ends_with_the_same_weights(shapes, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"SOLVER__CHECKPOINT_PERIOD": 1, "TEST__AUG__ENABLED": False}
    assert run_shapes(shapes, whole, SOLVER__MAX_ITER=3, **options) == 0
    assert run_shapes(shapes, parts, SOLVER__MAX_ITER=3, **options) == 0
    (parts / "last_checkpoint").write_text("model_0000000.pth")
    (parts / "model_final.pth").unlink()
    assert run_shapes(shapes, parts, "--resume", SOLVER__MAX_ITER=3, **options) == 0
    one, other = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (whole, parts)
    )
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_training_writes_losses_drops_and_both_evaluations(shapes, tmp_path):
    assert run_shapes(shapes, tmp_path, MODEL__DINO__INSTANCE_DROP__QUANTILE=0.5) == 0
    metrics = metrics_of(tmp_path)
    assert {"loss_cls", "loss_bbox_aux", "loss_giou_enc", "loss_cls_dn"} <= metrics.keys()
    assert metrics["dino/dropped"] > 0
    assert {"bbox/AP50", "bbox_TTA/AP50"} <= metrics.keys()
    log = (tmp_path / "log.txt").read_text()
    assert "MODEL.DINO.NUM_CLASSES set to 7 (it was 20)" in log
    again = tmp_path / "again"
    weights = str(tmp_path / "model_final.pth")
    assert run_shapes(shapes, again, "--eval-only", MODEL__WEIGHTS=weights) == 0
    summaries = [
        json.loads((folder / "inference" / "summary.json").read_text())["results"]
        for folder in (tmp_path, again)
    ]
    assert summaries[0] == summaries[1]


def test_boxes_that_are_all_too_small_are_an_error(shapes, tmp_path, capfd):
    assert run_shapes(shapes, tmp_path, MODEL__DINO__MIN_BOX_SIDE=1000) == 2
    assert "MODEL.DINO.MIN_IMAGE_SIDE or MIN_BOX_SIDE" in capfd.readouterr().err


def test_the_config_for_shapes_trains_on_a_cpu(shapes, tmp_path):
    datasets = [
        f"{name}={shapes}/annotations/instances_{split}.json:{shapes}/{split}"
        for name, split in zip(NAMES, ("train", "val"), strict=True)
    ]
    words = ["DATASETS.TRAIN", str(tuple(datasets[:1])), "DATASETS.TEST", str(tuple(datasets[1:]))]
    words += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "OUTPUT_DIR", str(tmp_path)]
    assert main(["--config-file", "WeakSAM/dino_shapes.yaml", "--num-gpus", "0", *words]) == 0
    assert "bbox/AP50" in metrics_of(tmp_path)


@pytest.mark.parametrize("name", SCHEDULES)
def test_configs_train_as_published(name: str):
    cfg = load_config(f"WeakSAM/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    published = SCHEDULES[name]
    assert {key: value_of(cfg, key) for key in published} == published
    drop = cfg.MODEL.DINO.INSTANCE_DROP
    assert drop.ISON and 0 < drop.OPERATE_ITER < cfg.SOLVER.STEPS[0]


# images, repeats, epochs, epochs before each step (SPEC_WEAKSAM 6.4)
EPOCHS = {
    "dino_voc07": (5_011, 3, 14, (8, 10, 12)),
    "dino_voc12": (11_540, 1, 12, (8, 10)),
    "dino_coco": (82_081, 1, 12, (8, 11)),
}


@pytest.mark.parametrize("name", EPOCHS)
def test_iterations_are_the_published_epochs(name: str):
    cfg = load_config(f"WeakSAM/{name}.yaml", ["MODEL.DEVICE", "cpu"])
    images, repeats, epochs, steps = EPOCHS[name]
    each = math.ceil(images * repeats / cfg.SOLVER.IMS_PER_BATCH)
    assert cfg.SOLVER.MAX_ITER == epochs * each
    assert cfg.SOLVER.STEPS == tuple(step * each for step in steps)


def small_voc(folder: Path) -> None:
    """Register 4 training and 2 test images of voc_mini."""
    source = REAL / "voc_mini" / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for part in ("JPEGImages", "Annotations"):
        (folder / part).symlink_to(source / part)
    for name, split, count in zip(NAMES, ("trainval", "test"), (4, 2), strict=True):
        ids = (source / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:count]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids))
        register_pascal_voc(name, str(folder), split, 2007)
        MetadataCatalog.get(name).evaluator_type = "pascal_voc"


def small_coco(folder: Path) -> list[str]:
    """The first 4 training and 2 validation images of coco_mini as datasets."""
    datasets = []
    for name, split, count in zip(NAMES, ("train2017", "val2017"), (4, 2), strict=True):
        source = REAL / "coco_mini" / "annotations" / f"instances_{split}.json"
        content = json.loads(source.read_text())
        labeled = {a["image_id"] for a in content["annotations"]}
        content["images"] = [i for i in content["images"] if i["id"] in labeled][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        path = folder / f"{split}.json"
        path.write_text(json.dumps(content))
        datasets.append(f"{name}={path}:{REAL / 'coco_mini' / split}")
    return datasets


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is absent")
@pytest.mark.parametrize("name", SCHEDULES)
def test_published_configs_train_and_evaluate_on_real_images(name: str, tmp_path):
    datasets = list(NAMES)
    if name == "dino_coco":
        datasets = small_coco(tmp_path)
    else:
        small_voc(tmp_path / "voc")
    output = tmp_path / "output"
    changes = {"DATASETS.TRAIN": (datasets[0],), "DATASETS.TEST": (datasets[1],)}
    assert run(name, output, **changes) == 0
    metrics = metrics_of(output)
    assert {"loss_cls", "bbox/AP50", "bbox_TTA/AP50"} <= metrics.keys()
    assert math.isfinite(metrics["total_loss"])
    log = (output / "log.txt").read_text()
    assert "NUM_CLASSES set to" not in log  # the config has the right number
