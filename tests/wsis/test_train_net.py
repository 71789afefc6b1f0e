"""tools/train_net.py with a narrow SOLOv2 on a few synthetic images."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adet.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import meta_architecture
from tests.wsis import run_training
from wsis.cli.main import program
from wsis.training import Trainer, adapt_num_classes

main = partial(program, "train")
ROOT = Path(__file__).parents[2]
SIZE = 64
TINY = {
    "MODEL.META_ARCHITECTURE": "SOLOv2",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "FrozenBN",  # batch statistics would differ between process counts
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.SOLOV2.INSTANCE_IN_CHANNELS": 32,
    "MODEL.SOLOV2.INSTANCE_CHANNELS": 32,
    "MODEL.SOLOV2.NUM_INSTANCE_CONVS": 1,
    "MODEL.SOLOV2.NUM_KERNELS": 32,
    "MODEL.SOLOV2.MASK_IN_CHANNELS": 32,
    "MODEL.SOLOV2.MASK_CHANNELS": 32,
    "MODEL.SOLOV2.NUM_MASKS": 32,
    "MODEL.SOLOV2.NUM_GRIDS": [12, 10, 8, 6, 4],
    "MODEL.SOLOV2.FPN_SCALE_RANGES": ((1, 16), (8, 24), (16, 32), (24, 48), (32, 2048)),
    "INPUT.MASK_FORMAT": "bitmask",
    "INPUT.MIN_SIZE_TRAIN": (SIZE,),
    "INPUT.MIN_SIZE_TEST": SIZE,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 5,
    "SOLVER.STEPS": (4,),
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.BASE_LR": 0.01,
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "SEED": 1,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """`json:images` of eight square images with one bright rectangle each, in three classes."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 9):
        pixels = rng.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        x, y = (int(n) for n in rng.integers(2, 20, 2))
        w, h = (int(n) for n in rng.integers(12, 40, 2))
        pixels[y : y + h, x : x + w] += 100
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.png")
        images.append(
            {"id": image_id, "file_name": f"{image_id}.png", "width": SIZE, "height": SIZE}
        )
        annotations.append(
            {
                "id": image_id,
                "image_id": image_id,
                "category_id": 10 * (1 + image_id % 3),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
        )
    categories = [{"id": i, "name": f"shape{i}"} for i in (10, 20, 30)]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(dataset))
    return f"{folder / 'instances.json'}:{folder / 'images'}"


@pytest.fixture
def inline(shapes):
    """The shapes under a new name for one test: `name=json:images`."""
    name = "train_net_test_shapes"
    yield f"{name}={shapes}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def options(output, train=(), test=(), **changes):
    values = TINY | {k.replace("__", "."): v for k, v in changes.items()}
    values |= {"DATASETS.TRAIN": tuple(train), "DATASETS.TEST": tuple(test)}
    words = ["OUTPUT_DIR", str(output)]
    for name, value in values.items():
        words += [name, value if isinstance(value, str) else repr(value)]
    return words


def log_of(folder):
    return (folder / "log.txt").read_text()


def test_train_evaluate_and_resume(inline, tmp_path):
    run = ["--num-gpus", "0", *options(tmp_path, [inline], [inline])]
    assert main(run) == 0
    assert "NUM_CLASSES set to 3 (it was 80)" in log_of(tmp_path)
    assert "shape10, shape20, shape30" in log_of(tmp_path)
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert weights["model"]["ins_head.cate_pred.weight"].shape[0] == 3
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert "segm/AP" in lines[-1]

    assert main(["--resume", *run]) == 0  # all done: evaluates only
    assert main(["--eval-only", *run, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]) == 0
    assert log_of(tmp_path).count("Evaluation results for segm:") == 3
    assert "pseudo" not in log_of(tmp_path).replace("EVAL_PSEUDO_LABEL", "")


@pytest.mark.parametrize("pseudo", [True, False])
def test_a_prompted_evaluation_names_its_mode(inline, tmp_path, pseudo):
    changes = dict(MODEL__SOLOV2__PROMPT="point", MODEL__SOLOV2__EVAL_PSEUDO_LABEL=pseudo)
    run = options(tmp_path, [inline], [inline], SOLVER__MAX_ITER=1, **changes)
    assert main(["--num-gpus", "0", *run]) == 0
    scores = "scores forced to 1" if pseudo else "scores of the network"
    assert f"[pseudo-label quality: prompt=point, {scores}]" in log_of(tmp_path)
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert "pseudo_label_segm/AP" in last and "segm/AP" not in last


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(inline, tmp_path):
    """SOLOv2's losses count positives over all processes, so that the curves agree."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_training.main(["--num-gpus", "0", *options(one, [inline])])
    flags = ["--num-gpus", "0", "--num-processes", "2"]
    paths = [str(ROOT), str(ROOT / "AdelaiDet"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, run_training.__file__, *flags, *options(two, [inline])],
        env=environment,
        check=True,
        timeout=600,
    )
    want, got = (json.loads((folder / "losses.json").read_text()) for folder in (one, two))
    assert len(got) == 5
    assert got == pytest.approx(want, abs=1e-4)


def config(train=(), test=(), **changes):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SOLOv2"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    for name, value in changes.items():
        cfg.MODEL.SOLOV2[name] = value
    return cfg


@pytest.mark.parametrize(
    "changes, mode",
    [
        ({}, None),
        ({"EVAL_PSEUDO_LABEL": True}, "not detector AP: scores forced to 1"),
        (
            {"PROMPT": "point", "EVAL_PSEUDO_LABEL": True},
            "pseudo-label quality: prompt=point, scores forced to 1",
        ),
        (
            {"PROMPT": "cls"},
            "pseudo-label quality: prompt=cls, scores of the network",
        ),
    ],
)
def test_modes(changes, mode):
    cfg = config(**changes)
    assert meta_architecture(cfg).evaluation_mode(cfg) == mode


@pytest.fixture
def named_classes():
    names = {"train_net_test_a": ["x", "y"], "train_net_test_b": ["x", "z"]}
    names["train_net_test_c"] = ["x", "y", "z"]
    for name, classes in names.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).thing_classes = classes
    yield [*names]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_builtin_coco_keeps_80_classes():
    cfg = config(["coco_2017_train"], ["coco_2017_val"])
    assert adapt_num_classes(cfg, eval_only=False) == []
    assert cfg.MODEL.SOLOV2.NUM_CLASSES == 80


def test_classes_come_from_training_data_or_when_evaluating_from_test_data(named_classes):
    a, b, c = named_classes
    cfg = config([a], [b])
    notes = adapt_num_classes(cfg, eval_only=False)
    assert cfg.MODEL.SOLOV2.NUM_CLASSES == 2
    assert any(f"{b} names its classes otherwise than {a}" in note for note in notes)
    cfg = config([a], [c])
    adapt_num_classes(cfg, eval_only=True)
    assert cfg.MODEL.SOLOV2.NUM_CLASSES == 3
    with pytest.raises(ValueError, match=f"{c} has 3 classes.*{a} has 2"):
        adapt_num_classes(config([a], [c]), eval_only=False)


def test_unknown_dataset_is_named():
    with pytest.raises(KeyError, match="no_such_set.*name=annotations.json"):
        adapt_num_classes(config(["no_such_set"]), eval_only=False)


def test_a_missing_gpu_is_named(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cuda"]) == 2
    assert "--num-gpus 0" in capsys.readouterr().err


def test_the_dataset_says_which_evaluator_measures_it(named_classes):
    voc = Trainer.build_evaluator(config(), "voc_2007_test")
    assert isinstance(voc, PascalVOCDetectionEvaluator)
    MetadataCatalog.get(named_classes[0]).evaluator_type = "lvis"
    with pytest.raises(ValueError, match="evaluator_type='lvis' in its metadata; allowed"):
        Trainer.build_evaluator(config(), named_classes[0])
