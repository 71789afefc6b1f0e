"""Mask2Former through the normal trainer: its configs, training, evaluation, resuming."""

import json
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("transformers", reason="needs the extra [sam]")

import wsis.config
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from tests.weaksam.small_mask2former import SMALL, words
from weaklabels.converters.voc import convert_voc
from weaklabels.files import write_json
from weaklabels.shapes.dataset import make_shapes
from weaksam.config import add_weaksam_config
from wsis.cli.main import program

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/mask2former_schedules.json").read_text())
MINI = ROOT / "../shared/data"
RECIPES = ("voc12", "coco")
NAMES = ("m2f_train", "m2f_val")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def weaksam_keys(monkeypatch):
    """The keys are in every config that `wsis` reads."""
    get_cfg = wsis.config.get_cfg

    def with_keys() -> CfgNode:
        cfg = get_cfg()
        if "WSOD" not in cfg.MODEL:
            add_weaksam_config(cfg)
        return cfg

    monkeypatch.setattr(wsis.config, "get_cfg", with_keys)


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in set(NAMES) & set(catalog.list()):
            catalog.remove(name)


def config_file(recipe: str) -> Path:
    return ROOT / "configs" / "WeakSAM" / f"mask2former_{recipe}.yaml"


def load(recipe: str) -> CfgNode:
    return wsis.config.load_config(str(config_file(recipe)), num_gpus=0)


def value_of(cfg: CfgNode, key: str):
    return json.loads(json.dumps(reduce(lambda node, name: node[name], key.split("."), cfg)))


@pytest.mark.parametrize("recipe", [*RECIPES, "coco_test"])
def test_configs_train_as_published(recipe, caplog):
    cfg = load(recipe)
    assert not caplog.messages  # no key is dropped
    published = GOLDEN["common"] | GOLDEN[recipe]
    assert {key: value_of(cfg, key) for key in published} == published


@pytest.mark.parametrize("recipe", RECIPES)
def test_rates_and_decay_are_those_of_the_recipe(recipe):
    cfg = load(recipe)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert model.sem_seg_head.predictor.class_embed.out_features == 1 + int(
        GOLDEN[recipe]["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    )
    optimizer = build_optimizer(cfg, model)
    options = {p: group for group in optimizer.param_groups for p in group["params"]}
    free = {
        parameter
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.GroupNorm | torch.nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    assert len(free) > 50
    for name, parameter in model.named_parameters():
        own = options[parameter]
        assert own["lr"] == pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4), name
        assert own["weight_decay"] == (0.0 if parameter in free else 0.05), name
    schedule = build_lr_scheduler(cfg, optimizer)
    first, second = cfg.SOLVER.STEPS
    times = (0, 9, first - 1, first, second - 1, second, cfg.SOLVER.MAX_ITER - 1)
    factors = [schedule._multiplier(i / cfg.SOLVER.MAX_ITER) for i in times]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_config_of_the_original_project_loads(tmp_path, caplog):
    """With the keys that have no effect here named in one warning."""
    node = {
        "MODEL": {
            "META_ARCHITECTURE": "MaskFormer",
            "SEM_SEG_HEAD": {
                "NAME": "MaskFormerHead",
                "IGNORE_VALUE": 255,
                "NUM_CLASSES": 80,
                "LOSS_WEIGHT": 1.0,
                "CONVS_DIM": 256,
                "MASK_DIM": 256,
                "NORM": "GN",
                "PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
                "IN_FEATURES": ["res2", "res3", "res4", "res5"],
                "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
                "COMMON_STRIDE": 4,
                "TRANSFORMER_ENC_LAYERS": 6,
            },
            "MASK_FORMER": {
                "TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
                "TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
                "DEEP_SUPERVISION": True,
                "NO_OBJECT_WEIGHT": 0.1,
                "CLASS_WEIGHT": 2.0,
                "MASK_WEIGHT": 5.0,
                "DICE_WEIGHT": 5.0,
                "HIDDEN_DIM": 256,
                "NUM_OBJECT_QUERIES": 100,
                "NHEADS": 8,
                "DROPOUT": 0.0,
                "DIM_FEEDFORWARD": 2048,
                "ENC_LAYERS": 0,
                "PRE_NORM": False,
                "ENFORCE_INPUT_PROJ": False,
                "SIZE_DIVISIBILITY": 32,
                "DEC_LAYERS": 10,
                "TRAIN_NUM_POINTS": 12544,
                "OVERSAMPLE_RATIO": 3.0,
                "IMPORTANCE_SAMPLE_RATIO": 0.75,
                "TEST": {
                    "SEMANTIC_ON": False,
                    "INSTANCE_ON": True,
                    "PANOPTIC_ON": False,
                    "OVERLAP_THRESHOLD": 0.8,
                    "OBJECT_MASK_THRESHOLD": 0.8,
                },
            },
            "RESNETS": {"STEM_TYPE": "basic", "RES5_MULTI_GRID": [1, 1, 1]},
        },
        "VERSION": 2,
    }
    path = tmp_path / "maskformer2_R50_bs16_50ep.yaml"
    path.write_text(yaml.safe_dump(node))
    cfg = wsis.config.load_config(str(path), num_gpus=0)
    assert cfg.MODEL.MASK_FORMER.DEC_LAYERS == 10
    (message,) = caplog.messages
    assert "MASK_FORMER.TEST.SEMANTIC_ON" in message and "SEM_SEG_HEAD.COMMON_STRIDE" in message


def make_data(folder: Path) -> list[str]:
    """Two inline datasets of shapes, with compressed RLE."""
    make_shapes(folder, train=6, val=2, size=64, seed=0)
    splits = zip(NAMES, ("train", "val"), strict=True)
    return [f"{n}={folder}/annotations/instances_{s}.json:{folder}/{s}" for n, s in splits]


def train(recipe: str, data: list[str], output: Path, *flags: str, **changes) -> int:
    values = SMALL | {
        "DATASETS.TRAIN": (data[0],),
        "DATASETS.TEST": tuple(data[1:]),
        "INPUT.IMAGE_SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.STEPS": (),
        "SOLVER.MAX_ITER": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.EVAL_PERIOD": 0,
        "SEED": 1,
        "OUTPUT_DIR": str(output),
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    words_ = ["--config-file", str(config_file(recipe)), "--num-gpus", "0", *flags, *words(values)]
    return program("train", words_)


def metrics_of(output: Path) -> dict:
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_training_on_shapes_and_evaluating_the_checkpoint(tmp_path):
    data = make_data(tmp_path / "shapes")
    assert train("voc12", data, tmp_path / "out") == 0
    metrics = metrics_of(tmp_path / "out")
    assert {"loss_ce", "loss_mask_0", "loss_dice_1", "segm/AP", "bbox/AP"} <= metrics.keys()
    assert "SEM_SEG_HEAD.NUM_CLASSES set to 7" in (tmp_path / "out" / "log.txt").read_text()
    summary = json.loads((tmp_path / "out/inference/summary.json").read_text())
    weights = tmp_path / "out" / "model_final.pth"
    state = torch.load(weights, weights_only=True)["model"]
    assert state["sem_seg_head.predictor.class_embed.weight"].shape == (8, 32)
    again = tmp_path / "again"
    assert train("voc12", data, again, "--eval-only", MODEL__WEIGHTS=weights) == 0
    repeated = json.loads((again / "inference/summary.json").read_text())
    assert repeated["results"] == summary["results"]


def test_a_resumed_training_ends_with_the_same_weights(tmp_path):
    data = make_data(tmp_path / "shapes")[:1]
    train("coco", data, tmp_path / "whole", SOLVER__MAX_ITER=4, DATASETS__TEST=())
    train("coco", data, tmp_path / "parts", SOLVER__MAX_ITER=2, DATASETS__TEST=())
    train("coco", data, tmp_path / "parts", "--resume", SOLVER__MAX_ITER=4, DATASETS__TEST=())
    whole, parts = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_files_without_masks_and_mixed_precision_on_a_cpu_are_refused(tmp_path, capsys):
    data = make_data(tmp_path / "shapes")
    path = tmp_path / "shapes/annotations/instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    path.write_text(json.dumps(content))
    assert train("voc12", data[:1], tmp_path / "a", DATASETS__TEST=()) == 2
    assert "has no masks: MaskFormer trains on masks" in capsys.readouterr().err
    assert train("voc12", data[:1], tmp_path / "b", SOLVER__AMP__ENABLED=True) == 2
    assert "SOLVER.AMP.ENABLED False" in capsys.readouterr().err


def coco_mini() -> list[str]:
    folder = MINI / "coco_mini"
    return [
        f"{name}={folder}/annotations/instances_{split}2017.json:{folder}/{split}2017"
        for name, split in zip(NAMES, ("train", "val"), strict=True)
    ]


@pytest.mark.skipif(not (MINI / "coco_mini").is_dir(), reason="../shared/data is absent")
def test_the_coco_recipe_on_a_slice_of_coco(tmp_path):
    """Polygons, crowds and the file's 80 classes."""
    data = coco_mini()
    content = json.loads((MINI / "coco_mini/annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    data[1] = f"{NAMES[1]}={few}:{MINI}/coco_mini/val2017"
    assert train("coco", data, tmp_path / "out", MODEL__MASK_FORMER__DEC_LAYERS=10) == 0
    metrics = metrics_of(tmp_path / "out")
    assert "segm/AP50" in metrics and "loss_dice_8" in metrics


@pytest.mark.skipif(not (MINI / "voc_mini").is_dir(), reason="../shared/data is absent")
def test_the_voc_recipe_on_the_masks_of_a_slice_of_voc(tmp_path):
    """Compressed RLE, and the IoU thresholds that weakly supervised methods report."""
    voc = MINI / "voc_mini/VOCdevkit/VOC2007"
    data = []
    for name, split in zip(NAMES, ("train", "val"), strict=True):
        file = tmp_path / f"{split}.json"
        write_json(file, convert_voc(voc, split, None, None))
        data.append(f"{name}={file}:{voc / 'JPEGImages'}")
    MetadataCatalog.get(NAMES[1]).extra_iou_thresholds = (0.25, 0.7)
    assert train("voc12", data, tmp_path / "out") == 0
    metrics = metrics_of(tmp_path / "out")
    assert {"segm/AP25", "segm/AP50", "segm/AP70", "segm/AP75"} <= metrics.keys()
