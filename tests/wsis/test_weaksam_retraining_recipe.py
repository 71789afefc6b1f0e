"""WeakSAM's stages behind the weak detector: schedules, what is read, where a run may begin."""

import json
from pathlib import Path

import pytest

from tests.wsis.test_schedules import value_of
from wsis.cli import weaksam
from wsis.cli.run import recipe_parser
from wsis.config import load_config
from wsis.recipes.weaksam import build_stages, make_run
from wsis.recipes.weaksam_start import read_table
from wsis.runner import PipelineError, State, dry_run, find_states, run_stages

GOLDEN = Path(__file__).parents[1] / "golden"
RCNN = json.loads((GOLDEN / "weaksam_retraining.json").read_text())["configs"]
DINO = json.loads((GOLDEN / "dino_schedules.json").read_text())
MASK2FORMER = json.loads((GOLDEN / "mask2former_schedules.json").read_text())
VOC12_MASKS = {"TEST.EXTRA_IOU_THRESHOLDS": [0.25, 0.7]}
PUBLISHED = [  # words, stage, published values
    (("voc07",), "retrain", RCNN["voc07_faster_rcnn"]),
    (("voc12", "--retrain", "faster_rcnn"), "retrain", RCNN["voc12_faster_rcnn"]),
    (("coco14",), "retrain", RCNN["coco14_faster_rcnn"]),
    (("voc07", "--retrain", "dino"), "retrain", DINO["dino_voc07"]),
    (("voc12", "--retrain", "dino"), "retrain", DINO["dino_voc12"]),
    (("coco14", "--retrain", "dino"), "retrain", DINO["dino_coco"]),
    (("voc12",), "segmenter", RCNN["voc12_mask_rcnn"] | VOC12_MASKS),
    (("coco14",), "segmenter", RCNN["coco_mask_rcnn"]),
    *(
        (
            (dataset, "--segmenter", "mask2former"),
            "segmenter",
            MASK2FORMER["common"] | MASK2FORMER[name],
        )
        for dataset, name in (("voc12", "voc12"), ("coco14", "coco"))
    ),
]


@pytest.fixture
def todo_of(tmp_path, monkeypatch):
    """The plan and the run of a command line."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))
    monkeypatch.setenv("NUM_GPUS", "0")

    def make(*words):
        args = recipe_parser("weaksam", weaksam).parse_intermixed_args(list(words))
        plan = weaksam.make_plan(args)
        return plan, weaksam.make_todo(plan, args)

    return make


def stages_of(run):
    return {stage.name: stage for stage in run.stages}


@pytest.mark.parametrize(
    ("words", "name", "published"), PUBLISHED, ids=[" ".join(row[0]) for row in PUBLISHED]
)
def test_networks_train_as_published(todo_of, words, name, published):
    plan, run = todo_of(*words)
    command = stages_of(run)[name].command
    pairs = [word for pair in command.config.items() for word in pair]
    cfg = load_config(command.flags["config-file"], pairs, num_gpus=0)
    told = {key for key in published if key.startswith("DATASETS.")}  # replaced by the run's files
    wanted = {key: value for key, value in published.items() if key not in told}
    assert {key: value_of(cfg, key) for key in wanted} == wanted
    labels = {"retrain": "pseudo_boxes.json", "segmenter": "masks.json"}[name]
    assert f"{plan.output}/{labels}:{plan.source.train.images}" in cfg.DATASETS.TRAIN[0]


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (("voc07",), ["pseudo_boxes_quality", "retrain"]),
        (("voc12",), ["mask_boxes", "masks", "mask_test", "segmenter"]),
        (("coco14",), ["retrain", "masks", "segmenter"]),
        (("coco14", "--retrain", "none"), ["pseudo_boxes_quality", "masks", "segmenter"]),
        (
            ("coco14", "--mask-boxes", "retrain"),
            ["retrain", "retrain_boxes", "mask_boxes", "masks", "segmenter"],
        ),
    ],
)
def test_each_dataset_ends_with_its_networks(todo_of, words, ends):
    assert [stage.name for stage in todo_of(*words)[1].stages][-len(ends) :] == ends


def test_a_dry_run_prints_the_published_schedules(todo_of):
    text = dry_run(todo_of("voc07")[1])
    assert (
        "# retrain: a detector that learns from these boxes (SGD 0.02, 16 images a step, 9000 "
        "steps, lower after 6000, 8000, warm-up 30, RoI drop above 4 and 4 from 2000 on)"
    ) in text
    text = dry_run(todo_of("coco14", "--retrain", "dino", "--segmenter", "mask2former")[1])
    assert "RoI drop of 0.1 of the queries from 7244 on" in text
    assert "ADAMW 0.0001, 16 images a step, 368750 steps, lower after 327778, 355092" in text


def test_options_reach_their_commands(todo_of):
    words = ("coco14", "--pseudo-boxes", "--rule topk --count 2", "--masks", "--pick best_iou")
    words += ("--segmenter", "grabcut", "--segmenter", "mask2former", "--mask-boxes", "retrain")
    words += ("--retrain-options", "SOLVER.MAX_ITER 5", "--segmenter-options", "SEED 3")
    stages = stages_of(todo_of(*words, "SOLVER.MAX_ITER", "9")[1])
    assert stages["masks"].command.flags["segmenter"] == "grabcut"
    assert stages["masks"].command.flags["pick"] == "best_iou"
    for name in ("pseudo_boxes", "mask_boxes"):
        assert stages[name].command.flags["count"] == "2"
    steps = {name: stages[name].command.config.get("SOLVER.MAX_ITER") for name in ("wsod",)}
    steps |= {"retrain": stages["retrain"].command.config["SOLVER.MAX_ITER"]}
    assert steps == {"wsod": "9", "retrain": "5"}
    assert "SOLVER.MAX_ITER" not in stages["segmenter"].command.config
    assert stages["segmenter"].command.config["SEED"] == "3"
    assert "mask2former_coco.yaml" in str(stages["segmenter"].command.flags["config-file"])


def test_images_that_the_segmenter_is_measured_on_are_left_out(todo_of):
    plan, run = todo_of("voc12")
    stages = stages_of(run)
    listed = plan.source.test.images.parent / "ImageSets" / "Segmentation" / "val.txt"
    assert stages["mask_boxes"].command.flags["leave-out"] == listed
    assert stages["masks"].command.flags["boxes"] == stages["mask_boxes"].makes[0]
    assert "leave-out" not in stages["pseudo_boxes"].command.flags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("voc07", "--segmenter", "mask_rcnn"), "no masks are measured on voc07"),
        (("voc12", "--mask-boxes", "retrain"), "add --retrain faster_rcnn"),
        (("voc12", "--until", "retrain"), "no such stage without --retrain"),
        (("voc07", "--until", "masks"), "no such stage without --segmenter"),
        (("voc07", "--segmenter-options", "SEED 1"), "add --segmenter"),
        (("voc07", "--segmenter", "tiny", "--segmenter", "grabcut"), "one of them"),
        (("voc07", "--from", "masks"), "no such stage"),
        (("voc07", "--start-from", "release"), "expected released"),
        (("voc12", "--start-from", "released:detector"), "no such file for voc12"),
        (("voc07", "--start-from", "released", "--from", "wsod"), "takes no --from"),
    ],
)
def test_what_does_not_fit_is_refused(todo_of, words, message):
    with pytest.raises(PipelineError, match=message):
        todo_of(*words)


def test_a_run_begins_where_it_is_told_to_with_given_files(todo_of, tmp_path):
    found = tmp_path / "output/wsod_boxes/inference_TTA/coco_instances_results.json"
    with pytest.raises(PipelineError, match=r"coco_instances_results.json is missing, which stage"):
        todo_of("voc07", "--from", "pseudo_boxes")
    found.parent.mkdir(parents=True)
    found.write_text(json.dumps([]))
    with pytest.raises(PipelineError, match=r"tags_train.json is missing"):
        todo_of("voc07", "--from", "pseudo_boxes")
    (tmp_path / "output/tags_train.json").write_text(json.dumps({}))
    run = todo_of("voc07", "--from", "pseudo_boxes")[1]
    todo = {s.name for s, state in find_states(run) if state is State.OPEN}
    assert todo == {"pseudo_boxes", "pseudo_boxes_quality", "retrain"}


def test_a_group_of_stages_begins_with_its_first(todo_of, tmp_path):
    (tmp_path / "output").mkdir()
    for name in ("tags_train", "tags_test"):
        (tmp_path / "output" / f"{name}.json").write_text("{}")
    run = todo_of("voc07", "--proposals", "selective_search", "--from", "proposals")[1]
    opened = [s.name for s, state in find_states(run) if state is State.OPEN]
    assert opened[0] == "proposals_train_selective_search"


def test_missing_weights_and_masks_are_said_before_anything_runs(todo_of, tmp_path):
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / "datasets" / "VOC2007" / name).mkdir(parents=True)
    words = ("voc07", "--segmenter", "tiny", "--retrain", "dino", "MODEL.WEIGHTS", "")
    with pytest.raises(PipelineError, match=r"dino_voc07.yaml names no MODEL.WEIGHTS.*--retrain-o"):
        run_stages(todo_of(*words)[1])
    coco = tmp_path / "datasets" / "coco"
    for name in ("train2014", "val2014"):
        (coco / name).mkdir(parents=True)
    words = ("coco14", "--proposals", "selective_search", "MODEL.WEIGHTS", "")
    with pytest.raises(PipelineError, match=r"sam_vit_h_4b8939.pth is missing"):
        run_stages(todo_of(*words)[1])
    with pytest.raises(PipelineError, match=r"val2017 is missing: masks are measured on COCO 2017"):
        run_stages(todo_of(*words, "--segmenter", "tiny")[1])
    assert not list((tmp_path / "output").glob("tags*"))


def test_released_files_are_asked_for_by_address_and_place(todo_of, tmp_path):
    root = tmp_path / "released"
    words = ("--released-root", str(root))
    with pytest.raises(PipelineError) as caught:
        todo_of("voc07", "--start-from", "released", *words)
    for split in ("trainval", "test"):
        place = root / "weaksam" / f"proposals_voc07_{split}_mist.pkl"
        url = read_table()["proposals", f"VOC07 {split}", "MIST form (dict pickle)"]
        assert f"fetch {url} and save it as {place}" in str(caught.value)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
    names = [stage.name for stage in todo_of("voc07", "--start-from", "released", *words)[1].stages]
    assert names[:3] == ["tags_train", "tags_test", "proposals_train_points"]
    assert "classifier" not in names and names[-1] == "retrain"


def test_a_released_network_is_evaluated_and_nothing_before_it_runs(todo_of, tmp_path):
    root = tmp_path / "released"
    place = root / "weaksam" / "detector_voc07_faster_r_cnn_from_mist.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    words = ("--start-from", "released:detector", "--released-root", str(root))
    plan, run = todo_of("voc07", *words)
    assert (plan.output / "retrain" / "model_final.pth").read_bytes() == b"weights"
    assert [(s.name, state) for s, state in find_states(run)] == [
        ("tags_train", State.OPEN),
        ("retrain", State.OPEN),
    ]
    assert "--eval-only" in run.words(run.stages[-1])


def test_released_masks_are_learned_from_where_they_are(todo_of, tmp_path):
    root = tmp_path / "released"
    place = root / "weaksam" / "labels_masks_coco17_train_wsis.json"
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    words = ("--start-from", "released:masks", "--released-root", str(root))
    _, run = todo_of("coco14", *words)
    assert [stage.name for stage in run.stages] == ["segmenter"]
    images = tmp_path / "datasets" / "coco" / "train2017"
    assert f"{place}:{images}" in run.stages[0].command.config["DATASETS.TRAIN"]


def test_given_pseudo_labels_are_checked(todo_of):
    plan, run = todo_of("coco14")
    plan.output.mkdir(parents=True)
    stages = stages_of(run)
    image = {"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}
    box = {"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    content = {"images": [image], "categories": [{"id": 1, "name": "dog"}], "annotations": [box]}
    for name in ("pseudo_boxes", "masks"):
        (made,) = stages[name].makes
        made.write_text(json.dumps(content))
    (check,) = stages["pseudo_boxes"].checks.values()
    assert check.look(stages["pseudo_boxes"].makes[0]) == "1 annotations in 1 images"
    (check,) = stages["masks"].checks.values()
    with pytest.raises(ValueError, match="annotation id 4 has no segmentation"):
        check.look(stages["masks"].makes[0])


def test_own_data_end_with_masks_on_request(todo_of, tmp_path):
    own = ("own", "--train-json", "a.json", "--image-root", "a", "--val-json", "b.json")
    own += ("--val-root", "b")
    assert [s.name for s in todo_of(*own)[1].stages][-1] == "retrain"
    plan, run = todo_of(*own, "--segmenter", "mask_rcnn")
    assert run.stages[-1].name == "segmenter"
    assert str(plan.source.test.images) in run.stages[-1].command.config["DATASETS.TEST"]
    assert build_stages(plan) == run.stages == make_run(plan).stages
