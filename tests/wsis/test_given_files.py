"""Files given in place of a stage's results: checked, used as they are, never overwritten.

Every stage is PointWSSIS's own with its own checks; its program is replaced by one that copies what
the stage makes from a folder of finished results, so that a whole run takes a second.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adet.config import get_cfg
from detectron2.modeling import build_model
from maskrefinenet.checkpoint import NetworkConfig, network_content
from tests.wsis.small_network import make_images
from weaklabels.masks import encode_mask
from wsis.recipes.plan import Plan
from wsis.recipes.pointwssis import make_run
from wsis.runner import ROOT, Command, Machines, PipelineError, Run, Stage, run_stages, set_aside
from wsis.runner.markers import STARTED, Marker, read_marker

TEACHER = "configs/Quickstart/shapes_teacher.yaml"
STUDENT = "configs/Quickstart/shapes_student.yaml"
STAGES = (
    *("split", "teacher", "strong_1", "strong_2", "refiner"),
    *("weak", "refine", "merge", "student"),
)
COPY = """
import shutil, sys
from pathlib import Path
for made, finished in zip(sys.argv[1::2], sys.argv[2::2]):
    Path(made).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(finished, made)
"""


def write_network(path: Path, config_file: str) -> None:
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / config_file))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": build_model(cfg).state_dict()}, path)


def write_refiner(path: Path, categories: list[dict]) -> None:
    config = NetworkConfig(len(categories), "resnet18", size=32)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network_content(config.build().state_dict(), config, tuple(categories)), path)


def write_records(path: Path, labels: dict) -> None:
    """One record an image, with an empty mask for each label of a label file."""
    with open(path, "w") as file:
        for image in labels["images"]:
            empty = encode_mask(np.zeros((image["height"], image["width"]), np.uint8))
            instances = [
                {
                    **{"category_id": a["category_id"], "score": 0.5},
                    "segmentation": empty,
                }
                for a in labels["annotations"]
                if a["image_id"] == image["id"]
            ]
            record = {key: image[key] for key in ("file_name", "height", "width")}
            file.write(json.dumps({"image_id": image["id"], **record, "instances": instances}))
            file.write("\n")


def part(content: dict, ids: set[int]) -> dict:
    """The images of a label file with these ids."""
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    images = [image for image in content["images"] if image["id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a dataset and valid results of every stage, without notes and markers."""
    folder = tmp_path_factory.mktemp("finished")
    annotations, _ = make_images(folder / "data", count=6)
    content = json.loads(annotations.read_text())
    ids = [image["id"] for image in content["images"]]
    strong, weak = part(content, set(ids[:2])), part(content, set(ids[2:]))
    weak["annotations"] = [
        {"id": a["id"], "image_id": a["image_id"], "category_id": a["category_id"]}
        | {"point": [a["bbox"][0] + 1, a["bbox"][1] + 1]}
        for a in weak["annotations"]
    ]
    for kind, labels in (("s", strong), ("w", weak), ("sw_refined", content)):
        write_json(annotations.with_name(f"instances_train_10p_{kind}.json"), labels)
    output = folder / "output"
    for name in ("model_final", "model_0000000", "model_0000001"):
        write_network(output / "teacher" / f"{name}.pth", TEACHER)
    write_network(output / "student" / "model_final.pth", STUDENT)
    write_json(output / "student/inference/coco_instances_results.json", [])
    write_json(output / "student/inference/summary.json", {"results": {}})
    write_refiner(output / "refiner" / "last.pth", content["categories"])
    for name, labels in (("strong_1", strong), ("strong_2", strong), ("weak", weak)):
        write_records(output / f"{name}.jsonl", labels)
        write_json(output / f"{name}.unmatched.json", [])
    write_records(output / "weak_refined.jsonl", weak)
    write_json(output / "weak_refined.unmatched.json", [])
    return folder


@pytest.fixture
def start(finished, tmp_path, make_plan, monkeypatch):
    """A run of an own dataset without any result, whose programs copy finished ones."""
    data = tmp_path / "data"
    shutil.copytree(finished / "data", data, ignore=shutil.ignore_patterns("*_10p_*"))
    monkeypatch.chdir(ROOT)
    program = tmp_path / "copy.py"
    program.write_text(COPY)
    files = ("--train-json", str(data / "annotations/instances_train.json"))
    files += ("--image-root", str(data / "train"), "--val-root", str(data / "val"))
    files += ("--val-json", str(data / "annotations/instances_val.json"))
    configs = ("--teacher-config", TEACHER, "--student-config", STUDENT)

    def begin(*words: str, output: str = "output") -> Run:
        monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / output))
        own = ("SOLVER.MAX_ITER", "2")
        plan = make_plan("10p", "--dataset", "own", *files, *configs, *own, *words, gpus=0)
        run = make_run(plan)
        stages = tuple(copying(stage, plan, finished, program) for stage in run.stages)
        return replace(run, stages=stages)

    return begin


def source_of(path: Path, output: Path, finished: Path) -> Path:
    """The finished file that a path of a run stands for."""
    if path.is_relative_to(output):
        return finished / "output" / path.relative_to(output)
    return finished / "data" / "annotations" / path.name


def copying(stage: Stage, plan: Plan, finished: Path, program: Path) -> Stage:
    """A stage whose program copies finished results, with the inputs of the real one."""
    pairs = [
        str(p)
        for path in (*stage.makes, *stage.leaves)
        for p in (path, source_of(path, plan.output, finished))
    ]
    command = Copying(str(program), tuple(pairs), stage.command.flags, stage.command.config)
    if stage.rest:  # makes all but what is given
        rest = replace(command, arguments=tuple(pairs[2:]))
        stage = replace(stage, rest=replace(stage.rest, command=rest, before=()))
    return replace(stage, command=command, before=())


@dataclass(frozen=True)
class Copying(Command):
    """Has the flags and the configuration of the real command in its marker, and copies files."""

    def argv(self, machines: Machines) -> list[str]:
        return Command(self.program, self.arguments).argv(machines)


def give(run: Run, finished: Path, *names: str, makes: slice = slice(None)) -> dict[Path, str]:
    """Put finished results where stages write; returns their checksums by path."""
    given = {}
    for stage in run.stages:
        for path in stage.makes[makes] if stage.name in names else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source_of(path, run.output, finished), path)
            os.utime(path, (1, 1))
            given[path] = checksum(path)
    return given


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unchanged(given: dict[Path, str]) -> bool:
    return all(checksum(p) == digest and p.stat().st_mtime == 1 for p, digest in given.items())


def states(run: Run) -> dict[str, str]:
    markers = {stage.name: read_marker(run.marker(stage)) for stage in run.stages}
    return {name: marker.state for name, marker in markers.items() if marker}


@pytest.mark.parametrize("name", STAGES)
def test_what_is_given_for_a_stage_is_used_as_it_is(start, finished, name, tmp_path, capsys):
    run = start()
    assert tuple(stage.name for stage in run.stages) == STAGES
    given = give(run, finished, name)
    leaves = [path for stage in run.stages for path in stage.leaves if stage.name == name]
    for path in leaves:  # a given teacher with the checkpoints that its refiner learns from
        shutil.copyfile(finished / "output" / path.relative_to(run.output), path)
    run_stages(run)
    printed = capsys.readouterr().out
    assert unchanged(given)
    assert f"{name}: given, used as it is" in printed
    marker = read_marker(run.marker(next(s for s in run.stages if s.name == name)))
    assert marker.state == "given"
    assert {p: note["sha256"] for p, note in marker.files.items()} == {
        str(path): digest for path, digest in given.items()
    }
    for path, digest in given.items():
        assert f"{path} is given (" in printed and digest[:12] in printed
    assert run_stages(run) == 0
    set_aside(run, name)
    run_stages(run)
    renamed = [p for p in tmp_path.rglob("*") if ".old-" in str(p) and p.is_file()]
    assert set(given.values()) <= {checksum(path) for path in renamed}
    assert states(run)[name] == "finished"


def test_given_pseudo_labels_leave_only_the_student_to_train(start, finished):
    run = start()
    given = give(run, finished, "merge")
    assert run_stages(run) == 1
    assert states(run) == {"merge": "given", "student": "finished"}
    assert unchanged(given)


def test_a_given_teacher_and_refiner_need_no_training_on_strong_images(start, finished):
    run = start()
    given = give(run, finished, "teacher", "refiner")
    assert run_stages(run) == 5
    assert [name for name, state in states(run).items() if state == "finished"] == [
        *("split", "weak", "refine", "merge", "student")
    ]
    assert unchanged(given) and run_stages(run) == 0


def test_a_given_student_is_evaluated(start, finished):
    run = start()
    given = give(run, finished, "student", makes=slice(1))
    assert run_stages(run) == 1
    assert states(run) == {"student": "finished"}
    marker = read_marker(run.marker(run.stages[-1]))
    assert marker.inputs["flags"]["config-file"] == STUDENT
    assert [note["sha256"] for note in marker.files.values()] == list(given.values())
    assert unchanged(given) and run_stages(run) == 0
    assert (run.output / "student/inference/summary.json").exists()


def test_a_students_evaluation_is_the_rest_of_its_stage(make_plan):
    stage = make_run(make_plan("10p")).stages[-1]
    assert stage.rest.command.flags["eval-only"] is True
    assert stage.rest.command.config["MODEL.WEIGHTS"] == str(stage.makes[0])
    assert stage.rest.makes == stage.makes
    assert not {*stage.rest.needs} & {*make_run(make_plan("10p")).stages[-2].makes}


def test_a_teacher_without_its_checkpoints_cannot_train_a_refiner(start, finished):
    run = start()
    give(run, finished, "teacher")
    with pytest.raises(PipelineError, match="model_0000000.pth.*'teacher' leaves it when it runs"):
        run_stages(run)


def test_an_interrupted_stage_is_not_given(start, finished):
    """Its results are there, but its marker says that it was started."""
    run = start()
    weak = next(stage for stage in run.stages if stage.name == "weak")
    give(run, finished, "weak")
    Marker(STARTED, weak.command.inputs()).write(run.marker(weak))
    assert run_stages(run) == len(STAGES)
    assert states(run)["weak"] == "finished"


def edited(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def of_other_images(path: Path) -> None:
    path.write_text(path.read_text().replace('"image_id": ', '"image_id": 9'))


def of_another_category(path: Path) -> None:
    path.write_text(path.read_text().replace('"category_id": ', '"category_id": 9'))


def of_another_network(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    key = "model" if "model" in state else "model_state"
    name = sorted(state[key])[0]
    state[key][name] = torch.zeros(3, 3, 3)
    torch.save(state, path)


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("teacher", of_another_network, "1 of another shape"),
        ("student", of_another_network, "1 of another shape"),
        ("refiner", of_another_network, "does not fit MaskRefineNet"),
        ("strong_1", of_other_images, "image ids are not in .*_10p_s.json"),
        ("refine", of_another_category, "category_id 9.* is not in .*_10p_w.json"),
        ("split", lambda p: edited(p, lambda c: c["categories"].pop()), "category id"),
        ("merge", lambda p: edited(p, lambda c: c["categories"].pop()), "category id"),
        ("merge", lambda p: p.write_text("[]"), "not a json object|no list"),
    ],
)
def test_unfit_files_are_refused_and_left_alone(start, finished, name, spoil, message):
    run = start()
    spoiled = next(iter(give(run, finished, name)))
    spoil(spoiled)
    before = checksum(spoiled)
    with pytest.raises(PipelineError, match=f"taken as given, but it is unfit: .*({message})"):
        run_stages(run)
    assert checksum(spoiled) == before
    assert states(run).get(name) is None


def test_labels_of_images_outside_the_split_are_refused(start, finished):
    run = start()
    give(run, finished, "split", "merge")
    merged = run.stages[-2].makes[0]

    def renumber(content):
        content["images"][0]["id"] = 999
        content["annotations"] = []

    edited(merged, renumber)
    with pytest.raises(PipelineError, match="1 image ids are not in .*such as 999"):
        run_stages(run)


def test_half_a_result_is_refused(start, finished):
    run = start()
    given = give(run, finished, "split", makes=slice(1))
    with pytest.raises(PipelineError, match="_10p_s.json stands where.*_10p_w.json is not there"):
        run_stages(run)
    assert unchanged(given)


def test_a_given_file_that_changes_is_noticed(start, finished):
    run = start()
    give(run, finished, "weak")
    run_stages(run)
    path = next(stage for stage in run.stages if stage.name == "weak").makes[0]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(PipelineError, match="weak.jsonl was given.*has changed since"):
        run_stages(run)


def test_runs_that_share_a_dataset_keep_their_labels_apart(start):
    """The split of the same command is shared; the merged labels are another run's own."""
    first, second = start(), start("SEED", "2", output="other")
    run_stages(first)
    merged = first.stages[-2].makes[0]
    before = checksum(merged)
    with pytest.raises(PipelineError, match="was made by the run in .*output from other inputs"):
        run_stages(second)
    assert checksum(merged) == before and states(second) == {}
    merged.rename(merged.with_name("kept.json"))
    assert run_stages(second) == len(STAGES) - 1
    assert states(second)["split"] == "given"
    with pytest.raises(PipelineError, match="was since replaced by the run in .*other"):
        run_stages(first)


def test_a_run_whose_folder_was_removed_starts_anew(start):
    run = start()
    run_stages(run)
    shutil.rmtree(run.output)
    assert run_stages(run) == len(STAGES) - 1  # the split is the one that it would make again
    merged = run.stages[-2].makes[0]
    assert len(list(merged.parent.glob(f"{merged.name}.old-*"))) == 1
