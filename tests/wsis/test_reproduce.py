"""Reproducing reported figures: tables that name split and mode, and the server's file."""

import json
import re
import shlex
import zipfile
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectron2.engine import DefaultPredictor
from maskrefinenet.checkpoint import NetworkConfig, network_content
from tests.programs import split_coco
from tests.weaklabels.coco_samples import compressed, decoded, make_coco
from tests.wsis.small_network import (
    CONFIG_FILE,
    OPTIONS,
    make_images,
    make_weights,
    read_jsonl,
    small_config,
)
from wsis import released
from wsis.cli.main import make_parser, program
from wsis.reproduce import STAGES

reproduce = partial(program, "reproduce")


def nearly_predicted(weights, content, images):
    """Annotations that the network nearly finds: its own masks, shifted by a pixel."""
    cfg = small_config()
    cfg.MODEL.WEIGHTS = str(weights)
    predictor, annotations = DefaultPredictor(cfg), []
    for image in content["images"]:
        found = predictor(cv2.imread(str(images / image["file_name"])))["instances"]
        for class_index, mask in zip(found.pred_classes[:3], found.pred_masks[:3], strict=True):
            rle = compressed(np.roll(mask.numpy().astype(np.uint8), len(annotations) % 2, axis=1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(class_index) + 1,
                    "iscrowd": 0,
                    "segmentation": rle,
                    "area": float(mask_utils.area(rle)),
                    "bbox": mask_utils.toBbox(rle).tolist(),
                }
            )
    return annotations


class Lab:
    """Small weights and a dataset with and without annotations; `run` gives code and rows."""

    def __init__(self, folder):
        self.weights = make_weights(folder / "weights.pth")
        self.truth, self.images = make_images(folder / "shapes")
        content = json.loads(self.truth.read_text())
        del content["annotations"]
        self.info = folder / "info.json"
        self.info.write_text(json.dumps(content))
        content["annotations"] = nearly_predicted(self.weights, content, self.images)
        self.truth.write_text(json.dumps(content))

    def run(self, output, stage, *flags, data="lab_val", own=True):
        words = ["--subset", "10p", "--stage", stage, "--num-gpus", "0", "--output", str(output)]
        if own:
            words += ["--checkpoint", str(self.weights), "--config-file", str(CONFIG_FILE)]
        file = {"lab_val": self.truth, "lab_info": self.info}[data]
        words += [*flags, *OPTIONS, "DATASETS.TEST", f"('{data}={file}:{self.images}',)"]
        code = reproduce(words)
        rows = output / "reproduce.json"
        return json.loads(rows.read_text()) if code == 0 else code


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("reproduce"))


def pycocotools_ap(truth, results):
    """Mask AP in percent; boxes are left out, since their areas would count as the masks'."""
    gt = COCO(str(truth))
    detections = json.loads(results.read_text())
    dt = gt.loadRes([{k: v for k, v in d.items() if k != "bbox"} for d in detections])
    evaluation = COCOeval(gt, dt, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100 * evaluation.stats[0]


def reported_lines(output):
    return [line for line in output.splitlines() if "reported" in line]


def test_a_teacher_gets_two_figures_of_different_names(lab, tmp_path, capsys):
    detector, labels = lab.run(tmp_path, "teacher")
    output = capsys.readouterr().out
    assert detector["mode"] == "detector AP: prompt=none, scores of the network"
    assert labels["mode"] == "pseudo-label quality: prompt=point, scores of the network"
    for row, prompt in ((detector, "none"), (labels, "point")):
        assert row["split"] == "lab_val" and str(lab.weights) in row["source"]
        results = tmp_path / f"prompt_{prompt}" / "inference" / "coco_instances_results.json"
        assert row["AP"] == pytest.approx(pycocotools_ap(lab.truth, results), abs=1e-9)
    assert detector["AP"] > 1
    (reported,) = reported_lines(output)
    assert re.search(r"student +test-dev +detector AP +35\.8 ", reported)
    assert output.count("test-dev") == 1


def test_the_servers_file_has_its_form(lab, tmp_path, capsys):
    (row,) = lab.run(
        tmp_path, "student", "--split", "test-dev", "--name", "ours-1", data="lab_info"
    )
    assert "AP" not in row and row["split"] == "lab_info"
    (measured,) = (x for x in capsys.readouterr().out.splitlines() if "by the server" in x)
    assert not re.search(r"\d\.\d", measured.split("scores of the network")[1].split("to be")[0])
    name = "detections_test-dev2017_ours-1_results"
    with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        content = archive.read(f"{name}.json")
    assert content == (tmp_path / f"{name}.json").read_bytes()
    results = json.loads(content)
    assert results
    for result in results:
        assert set(result) == {"image_id", "category_id", "segmentation", "score"}
        assert isinstance(result["segmentation"]["counts"], str)
    COCO(str(lab.truth)).loadRes(results)


def test_split_and_annotations_have_to_agree(lab, tmp_path, capsys):
    assert lab.run(tmp_path, "student", data="lab_info") == 2
    assert "--split val2017, but lab_info has no annotations" in capsys.readouterr().err
    assert lab.run(tmp_path, "student", "--split", "test-dev") == 2
    assert "--split test-dev, but lab_val has annotations" in capsys.readouterr().err
    assert not list(tmp_path.rglob("detections*"))


def synthetic(kind, path, **changes):
    """A file with the released keys and shapes; one stored number a tensor keeps it small."""
    shapes = released.expected_shapes(kind) | changes
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    path.parent.mkdir(parents=True)
    torch.save({"model": state}, path)


def test_a_released_checkpoint_is_verified_and_evaluated(tmp_path, capsys):
    truth, images = make_images(tmp_path / "shapes", count=1)
    content = json.loads(truth.read_text())
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    truth.write_text(json.dumps(content))
    synthetic("student", released.released_path(tmp_path, "5p", "student"))
    words = ["--subset", "5p", "--stage", "student", "--checkpoints-dir", str(tmp_path)]
    words += ["--num-gpus", "0", "--output", str(tmp_path / "out")]
    # Zero weights score every cell 0.5.
    words += ["MODEL.SOLOV2.SCORE_THR", "0.9", "INPUT.MIN_SIZE_TEST", "64"]
    words += ["DATALOADER.NUM_WORKERS", "0", "MODEL.SOLOV2.NUM_GRIDS", "[8, 8, 8, 8, 8]"]
    words += ["DATASETS.TEST", f"('lab_80={truth}:{images}',)"]
    assert reproduce(words) == 0
    output = capsys.readouterr().out
    assert "every key and shape" in output
    assert re.search(r"student +lab_80 +detector AP", output)
    (reported,) = reported_lines(output)
    assert "33.7" in reported


def test_a_file_with_other_keys_is_refused(lab, tmp_path, capsys):
    path = released.released_path(tmp_path, "10p", "teacher")
    synthetic("teacher", path, **{"ins_head.cate_pred.bias": (7,)})
    flags = ("--checkpoints-dir", str(tmp_path))
    assert lab.run(tmp_path / "out", "teacher", *flags, own=False) == 2
    message = capsys.readouterr().err
    assert str(path) in message and "1 of another shape (ins_head.cate_pred.bias)" in message


def test_an_own_checkpoint_has_to_fit_its_config(lab, tmp_path, capsys):
    state = torch.load(lab.weights, weights_only=True)["model"]
    del state["ins_head.cate_pred.bias"]
    torch.save({"model": state}, tmp_path / "cut.pth")
    flags = ("--checkpoint", str(tmp_path / "cut.pth"))
    assert lab.run(tmp_path / "out", "student", *flags) == 2
    assert "1 missing in the file (such as ins_head.cate_pred.bias)" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_file_is_answered_by_the_command_that_gets_it(tmp_path, capsys, stage):
    folder = tmp_path / "files"
    words = ["--subset", "20p", "--stage", stage, "--checkpoints-dir", str(folder)]
    assert reproduce(words) == 2
    message = capsys.readouterr().err
    (command,) = (line for line in message.splitlines() if "wsis download" in line)
    wsis, name, *flags = shlex.split(command)
    assert (wsis, name) == ("wsis", "download")
    args = make_parser(name).parse_args(flags)
    assert (args.subset, args.what, args.output) == ("20p", [stage], folder)
    assert str(released.released_path(folder, "20p", stage)) in message


def test_missing_data_is_named_with_its_source(lab, tmp_path, capsys):
    words = ["--subset", "10p", "--stage", "student", "--checkpoint", str(lab.weights)]
    words += ["--num-gpus", "0", "--split", "test-dev", "--output", str(tmp_path)]
    words += ["DATASETS.TEST", "('coco_2014_valminusminival',)"]
    assert reproduce(words) == 2
    message = capsys.readouterr().err
    assert "instances_valminusminival2014.json" in message
    assert "image_info_test2017.zip" in message


@pytest.fixture
def labels(tmp_path):
    """Files of 12 images: all masks, the weak ones' points, and perfect merged labels."""
    coco = make_coco(num_images=12, seed=2)
    (tmp_path / "all.json").write_text(json.dumps(coco))
    assert split_coco([str(tmp_path / "all.json"), "--images", "4", "--seed", "1"]) == 0
    weak = {image["id"] for image in json.loads((tmp_path / "all_4i_w.json").read_text())["images"]}
    annotations = []
    for a in coco["annotations"]:
        if a["image_id"] in weak:
            if a["iscrowd"]:
                continue
            a = a | {"segmentation": compressed(decoded(a)), "area": int(np.sum(decoded(a)))}
        annotations.append(a | {"id": len(annotations) + 1})
    merged = tmp_path / "merged.json"
    merged.write_text(json.dumps(coco | {"annotations": annotations}))
    return merged


def label_words(merged, weak):
    folder = merged.parent
    words = ["--subset", "10p", "--stage", "pseudo_labels", "--checkpoint", str(merged)]
    words += ["--truth-json", str(folder / "all.json"), "--weak-json", str(folder / weak)]
    return [*words, "--output", str(folder / "out")]


def test_pseudo_labels_are_judged_on_the_weak_images(labels, capsys):
    assert reproduce(label_words(labels, "all_4i_w.json")) == 0
    rows = json.loads((labels.parent / "out" / "reproduce.json").read_text())
    assert [row["AP"] for row in rows] == [100.0, 100.0]
    assert [row["mode"] for row in rows] == [
        "pseudo-label quality: scores as given",
        "pseudo-label quality: scores forced to 1",
    ]
    assert {row["split"] for row in rows} == {"weak images of all_4i_w.json"}
    report = json.loads((labels.parent / "out" / "quality.json").read_text())
    assert report["images"] == 8
    (reported,) = reported_lines(capsys.readouterr().out)
    assert "test-dev" in reported and "student" in reported


@pytest.fixture
def refinement(lab, tmp_path):
    """A function that runs the stage maskrefinenet on the weak half of the lab's images."""
    content = json.loads(lab.truth.read_text())
    chosen = {image["id"] for image in content["images"][::2]}
    weak = content | {
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [
            {key: a[key] for key in ("id", "image_id", "category_id")}
            | {"point": [a["bbox"][0] + 1, a["bbox"][1] + 1]}
            for a in content["annotations"]
            if a["image_id"] in chosen
        ],
    }
    (tmp_path / "weak.json").write_text(json.dumps(weak))
    config = NetworkConfig(len(content["categories"]), "resnet18", size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = config.build().state_dict()
    torch.save(
        network_content(state, config, tuple(content["categories"])), tmp_path / "refiner.pth"
    )

    def run(*flags):
        words = ["--subset", "10p", "--stage", "maskrefinenet", "--num-gpus", "0"]
        words += ["--weights", str(tmp_path / "refiner.pth"), "--annotations", str(lab.truth)]
        words += ["--weak-annotations", str(tmp_path / "weak.json")]
        words += ["--image-root", str(lab.images), "--output", str(tmp_path / "out")]
        return reproduce([*words, *flags])

    return run


def test_refinement_is_judged_before_and_after(lab, refinement, tmp_path, capsys):
    teacher = ["--teacher", str(lab.weights), "--config-file", str(CONFIG_FILE), *OPTIONS]
    assert refinement(*teacher) == 0
    rows = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    what, forced = "pseudo labels, {}refined", "pseudo-label quality: scores forced to 1"
    assert [row["what"] for row in rows] == [what.format("un")] * 2 + [what.format("")] * 2
    assert {row["split"] for row in rows} == {"weak images of weak.json"}
    for row, name in ((rows[1], "unrefined"), (rows[3], "refined")):
        report = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert report["images"] == 2 and row["mode"] == forced
        assert row["AP"] == report["mask_ap"]["scores forced to 1"]["AP"]
    records = [read_jsonl(tmp_path / "out" / f"{name}.jsonl") for name in ("unrefined", "refined")]
    assert [r["image_id"] for r in records[0]] == [r["image_id"] for r in records[1]]
    assert records[0] != records[1]
    assert sum(len(r["instances"]) for r in records[0]) > 0
    before = (tmp_path / "out" / "refined.jsonl").stat().st_mtime_ns
    assert refinement(*teacher) == 0  # judges again
    assert (tmp_path / "out" / "refined.jsonl").stat().st_mtime_ns == before
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes((tmp_path / "out" / "unrefined.jsonl").read_bytes())
    capsys.readouterr()
    assert refinement("--records", str(kept)) == 2
    assert "holds results of another config_file, overrides, records" in capsys.readouterr().err
    assert refinement("--records", str(kept), "--output", str(tmp_path / "other")) == 0
    again = json.loads((tmp_path / "other" / "reproduce.json").read_text())
    assert [row["AP"] for row in again] == [row["AP"] for row in rows]


def test_labels_of_another_split_are_refused(labels, capsys):
    arguments = [str(labels.parent / "all.json"), "--images", "5", "--seed", "7"]
    assert split_coco(arguments) == 0
    assert reproduce(label_words(labels, "all_5i_w.json")) == 2
    assert "different splits" in capsys.readouterr().err
    assert reproduce(label_words(labels, "gone.json")) == 2
    assert "gone.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        ("student", ["MODEL.WEIGHTS", "x.pth"], "MODEL.WEIGHTS is decided by --weights"),
        ("teacher", ["MODEL.SOLOV2.PROMPT", "cls"], "MODEL.SOLOV2.PROMPT is decided by --stage"),
        ("pseudo_labels", ["--split", "test-dev"], "--split does not apply"),
        ("pseudo_labels", ["INPUT.MIN_SIZE_TEST", "64"], "runs no network"),
        ("student", ["--weak-json", "w.json"], "are for --stage pseudo_labels"),
        ("student", ["--teacher", "t.pth"], "are for --stage maskrefinenet"),
        ("maskrefinenet", ["--records", "r.jsonl", "--teacher", "t"], "no teacher"),
        ("maskrefinenet", ["--split", "test-dev"], "--split does not apply"),
        ("student", ["--name", "x"], "--name is for --split test-dev"),
        ("student", ["--split", "test-dev", "--name", "a b"], "'a b'"),
    ],
)
def test_options_that_would_be_ignored_are_refused(stage, flags, message, capsys):
    assert reproduce(["--subset", "10p", "--stage", stage, *flags]) == 2
    assert message in capsys.readouterr().err
