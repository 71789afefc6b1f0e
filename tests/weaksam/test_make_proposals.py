"""Proposal files of a dataset: shards, resuming, merging, bad input."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import weaksam.proposals.make as make
from detectron2.data.proposals import load_proposals_into_dataset
from tests.weaksam.samples import make_dataset, write_points
from weaksam.proposals.files import SOURCES, Proposals, read_proposal_file, write_proposals
from weaksam.proposals.images import read_images
from weaksam.proposals.make import (
    Inputs,
    PromptedProposals,
    make_proposals,
    merge_proposals,
)
from weaksam.proposals.prompts import Clicks, Grid, Prompting
from weaksam.proposals.without_prompts import RandomBoxes, SelectiveSearch, selective_search

METHOD = PromptedProposals("tiny", Prompting(Grid(3, 0.0, 0.0, 0.7)), device="cpu")


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    images, root = make_dataset(tmp_path)
    points = {
        name: write_points(tmp_path / f"{name}.npz", images) for name in ("coarse", "fine", "cross")
    }
    return Inputs(images, root, points)


def test_file_is_what_detectron2_reads(inputs, tmp_path):
    output = tmp_path / "proposals.npz"
    counts = make_proposals(inputs, METHOD, output)
    records = read_images(inputs.images)
    found = read_proposal_file(output, records)
    assert counts.boxes == len(found.boxes) > 0
    assert counts.by_source == {
        name: int((found.source == i).sum())
        for i, name in enumerate(SOURCES)
        if (found.source == i).any()
    }
    dicts = [{"image_id": int(record.id)} for record in records]
    for index, entry in enumerate(load_proposals_into_dataset(dicts, str(output))):
        rows = found.rows(index)
        order = np.argsort(-found.scores[rows], kind="stable")
        np.testing.assert_array_equal(entry["proposal_boxes"], found.boxes[rows][order])


def test_killed_run_goes_on_to_the_same_bytes(inputs, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole.npz", tmp_path / "killed.npz"
    make_proposals(inputs, METHOD, whole)
    made = []

    def stop_at_the_third(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return original(*arguments)

    original = make.image_proposals
    monkeypatch.setattr(make, "image_proposals", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_proposals(inputs, METHOD, killed)
    assert not killed.exists()
    assert len(list(killed.parent.glob("killed*/*.npz"))) == 2
    monkeypatch.setattr(make, "image_proposals", lambda *a: made.append(1) or original(*a))
    counts = make_proposals(inputs, METHOD, killed)
    assert len(made) == 4 and killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.shards"))
    written = killed.stat().st_mtime_ns
    assert make_proposals(inputs, METHOD, killed) == counts
    assert len(made) == 4 and killed.stat().st_mtime_ns == written


def test_threads_do_not_change_the_bytes(inputs, tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        make_proposals(inputs, METHOD, tmp_path / f"{threads}.npz")
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_results_of_other_settings_are_refused(inputs, tmp_path):
    output = tmp_path / "p.npz"
    make_proposals(inputs, METHOD, output)
    before = output.read_bytes()
    other = replace(METHOD, prompting=Prompting(Grid(4)))
    with pytest.raises(ValueError, match=r"p\.npz was made with other settings"):
        make_proposals(inputs, other, output)
    write_points(inputs.points["fine"], inputs.images, per_image=2)
    with pytest.raises(ValueError, match=r"p\.npz was made with other points"):
        make_proposals(inputs, METHOD, output)
    assert output.read_bytes() == before


def test_shards_of_other_settings_are_refused(inputs, tmp_path, stopped):
    other = replace(METHOD, prompting=Prompting(Grid(4)))
    with pytest.raises(
        ValueError, match=r"p\.npz\.shards holds proposals made with other settings"
    ):
        make_proposals(inputs, other, stopped)


@pytest.fixture
def stopped(inputs, tmp_path, monkeypatch):
    """An output of which the shards are made, all but the last one."""
    original = make.image_proposals
    with monkeypatch.context() as patch:
        calls = iter(range(4))
        patch.setattr(make, "image_proposals", lambda *a: 1 / (3 - next(calls)) and original(*a))
        with pytest.raises(ZeroDivisionError):
            make_proposals(inputs, METHOD, tmp_path / "p.npz")
    return tmp_path / "p.npz"


def test_half_a_shard_is_named(inputs, stopped):
    shard = stopped.parent / "p.npz.shards" / "2.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"2\.npz: expected a whole .npz"):
        make_proposals(inputs, METHOD, stopped)
    assert not stopped.exists()


def test_a_file_of_the_user_in_the_place_of_the_output_stays(inputs, tmp_path):
    (tmp_path / "p.npz").write_text("mine")
    with pytest.raises(ValueError, match=r"p\.npz: expected a whole .npz"):
        make_proposals(inputs, METHOD, tmp_path / "p.npz")
    assert (tmp_path / "p.npz").read_text() == "mine"


def test_images_without_boxes_are_listed(inputs, tmp_path):
    method = replace(METHOD, prompting=Prompting(grid=None))
    counts = make_proposals(inputs, method, tmp_path / "p.npz")
    (skipped,) = json.loads((tmp_path / "p.skipped.json").read_text())
    assert skipped == {"image_id": "3", "file_name": "000003.png", "reason": "no proposal"}
    assert counts.without == ("3",)
    assert len(read_proposal_file(tmp_path / "p.npz").ids) == 4


def test_merge_joins_the_boxes_of_each_image_in_order(inputs, tmp_path):
    bare = Inputs(inputs.images, inputs.root)
    make_proposals(bare, RandomBoxes(5), tmp_path / "random.npz")
    make_proposals(bare, SelectiveSearch(min_side=3), tmp_path / "search.npz")
    files = [tmp_path / "search.npz", tmp_path / "random.npz"]
    merge_proposals(files, inputs.images, tmp_path / "both.npz")
    search, chance, both = (read_proposal_file(p) for p in (*files, tmp_path / "both.npz"))
    for index in range(4):
        want = [p.boxes[p.rows(index)] for p in (search, chance)]
        np.testing.assert_array_equal(both.boxes[both.rows(index)], np.concatenate(want))
    assert set(both.source) == {SOURCES.index("selective_search"), SOURCES.index("random")}


def test_selective_search_finds_a_square_and_repeats_itself():
    image = np.full((80, 100, 3), 60, np.uint8)
    image[20:50, 30:70] = (200, 40, 90)
    image += np.random.default_rng(0).integers(0, 3, image.shape, dtype=np.uint8)
    settings = SelectiveSearch()
    found = selective_search(image, settings).boxes
    assert [30, 20, 70, 50] in found.tolist()
    assert len(np.unique(found, axis=0)) == len(found)
    areas = (found[:, 2:] - found[:, :2]).prod(1)
    assert (np.diff(areas) <= 0).all()
    np.testing.assert_array_equal(selective_search(image, settings).boxes, found)


def test_selective_search_on_a_smaller_copy_stays_inside():
    image = np.random.default_rng(0).integers(0, 255, (64, 301, 3), dtype=np.uint8)
    boxes = selective_search(image, SelectiveSearch(max_side=100)).boxes
    assert (boxes >= 0).all() and boxes[:, 2].max() <= 301 and boxes[:, 3].max() <= 64


@pytest.mark.parametrize(
    "change,message",
    [
        ({"boxes": lambda b: np.where(np.arange(len(b))[:, None] == 3, np.nan, b)}, "box 3.*NaN"),
        ({"boxes": lambda b: b + [0, 0, 500, 0]}, "image 1,.*outside"),
        ({"boxes": lambda b: b[:, [2, 1, 0, 3]]}, "image 1,.*no area"),
        ({"scores": lambda s: s * np.inf}, "score that is NaN or infinite"),
        ({"ids": lambda i: np.array(["7", "8", "9", "10"])}, "another dataset"),
        ({"ids": lambda i: np.array(["1", "2", "3", "10"])}, "lacks 1 of 4 images, such as 4"),
        ({"sizes": lambda s: s + 1}, "image 1 is of"),
    ],
)
def test_proposal_files_that_cannot_be(inputs, tmp_path, change, message):
    make_proposals(Inputs(inputs.images, inputs.root), RandomBoxes(5), tmp_path / "p.npz")
    good = read_proposal_file(tmp_path / "p.npz")
    ((name, function),) = change.items()
    bad = Proposals(**{**good.__dict__, name: function(getattr(good, name))})
    write_proposals(tmp_path / "bad.npz", bad)
    with pytest.raises(ValueError, match=r"bad\.npz.*" + message):
        merge_proposals([tmp_path / "bad.npz"], inputs.images, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_files_of_other_kinds(inputs, tmp_path):
    (tmp_path / "text.npz").write_text("no proposals")
    with pytest.raises(ValueError, match=r"text\.npz"):
        read_proposal_file(tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"fine\.npz lacks \['boxes'"):
        read_proposal_file(inputs.points["fine"])
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_proposal_file(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sizes": np.full((4, 2), 9, np.int32)}, "image id 1 has a point"),
        ({"offsets": np.array([0, 4, 8, 8, 11])}, "offsets do not run"),
        ({"ids": np.array(["1", "2", "3", "5"])}, "lacks image 4"),
        ({"sizes": np.full((4, 2), 99, np.int32)}, "image 1 is of"),
    ],
)
def test_points_that_cannot_be(inputs, tmp_path, changes, message):
    write_points(inputs.points["fine"], inputs.images, **changes)
    with pytest.raises(ValueError, match=r"fine\.npz.*" + message):
        make_proposals(inputs, METHOD, tmp_path / "p.npz")
    assert not (tmp_path / "p.npz").exists()


def test_an_image_that_is_not_what_the_file_says(inputs, tmp_path):
    content = json.loads(inputs.images.read_text())
    content["images"][1]["height"] = 99
    inputs.images.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"000002\.png is 44 x 56.*image id 2 says 99 x 56"):
        make_proposals(Inputs(inputs.images, inputs.root), SelectiveSearch(), tmp_path / "p.npz")
    (inputs.root / "000002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002\.png"):
        make_proposals(Inputs(inputs.images, inputs.root), SelectiveSearch(), tmp_path / "p.npz")


@pytest.mark.parametrize("content", ["{}", '{"images": []}', '{"images": [{"id": 1}]}', "[", "[1]"])
def test_image_lists_that_cannot_be(tmp_path, content):
    (tmp_path / "tags.json").write_text(content)
    with pytest.raises(ValueError, match=r"tags\.json"):
        read_images(tmp_path / "tags.json")


def test_equal_proposals_give_equal_bytes_whenever_written(inputs, tmp_path):
    make_proposals(Inputs(inputs.images, inputs.root), RandomBoxes(3), tmp_path / "p.npz")
    with zipfile.ZipFile(tmp_path / "p.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_methods_without_prompts_refuse_points(inputs, tmp_path):
    with pytest.raises(ValueError, match="takes no points"):
        make_proposals(inputs, RandomBoxes(3), tmp_path / "p.npz")


def test_clicks_of_the_settings_reach_the_boxes(inputs, tmp_path):
    all_masks = replace(METHOD, prompting=Prompting(None, Clicks(masks=(0, 1, 2))))
    counts = make_proposals(inputs, all_masks, tmp_path / "p.npz")
    made = counts.boxes + counts.empty_masks_dropped
    assert made >= 3 * (12 + 12)  # single clicks of coarse and fine alone
