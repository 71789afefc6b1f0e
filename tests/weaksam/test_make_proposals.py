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
    Work,
    make_proposals,
    merge_proposals,
)
from weaksam.proposals.points import read_points
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
    assert counts["boxes"] == len(found.boxes) > 0
    assert counts["by_source"] == {
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
    shards = {path: path.stat().st_mtime_ns for path in killed.parent.glob("killed*/*.npz")}
    assert len(shards) == 2
    monkeypatch.setattr(make, "image_proposals", original)
    make_proposals(inputs, METHOD, killed)
    assert killed.read_bytes() == whole.read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in shards.items())


def test_parts_and_threads_do_not_change_the_bytes(inputs, tmp_path):
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    before = torch.get_num_threads()
    make_proposals(inputs, METHOD, whole)
    assert torch.get_num_threads() == before
    assert make_proposals(inputs, METHOD, parts, Work(part=1, parts=2)) is None
    assert not parts.exists()
    assert make_proposals(inputs, METHOD, parts, Work(part=0, parts=2))["images"] == 4
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(inputs, tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    make_proposals(inputs, METHOD, one)
    make_proposals(inputs, METHOD, two, Work(processes=2))
    assert one.read_bytes() == two.read_bytes()


def test_shards_of_other_settings_are_refused(inputs, tmp_path):
    output = tmp_path / "p.npz"
    make_proposals(inputs, METHOD, output)
    other = replace(METHOD, prompting=Prompting(Grid(4)))
    with pytest.raises(ValueError, match=r"settings.*delete .*p\.npz\.shards"):
        make_proposals(inputs, other, output)
    write_points(inputs.points["fine"], inputs.images, per_image=2)
    with pytest.raises(ValueError, match="points"):
        make_proposals(inputs, METHOD, output)


def test_half_a_shard_is_named(inputs, tmp_path):
    output = tmp_path / "p.npz"
    make_proposals(inputs, METHOD, output)
    shard = tmp_path / "p.npz.shards" / "2.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"2\.npz is no whole shard"):
        make_proposals(inputs, METHOD, output)


def test_images_without_boxes_are_listed(inputs, tmp_path):
    method = replace(METHOD, prompting=Prompting(grid=None))
    counts = make_proposals(inputs, method, tmp_path / "p.npz")
    skipped = json.loads((tmp_path / "p.npz.skipped.json").read_text())
    assert skipped == {"no proposals": ["3"]}  # the image without points
    assert counts["images_without_proposals"] == 1
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
    with pytest.raises(ValueError, match=r"fine\.npz.*lacks \['boxes'"):
        read_proposal_file(inputs.points["fine"])
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_proposal_file(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"sizes": np.full((4, 2), 9, np.int32)}, "image 1 has a point"),
        ({"offsets": np.array([0, 4, 8, 8])}, "4 ids need 5 offsets"),
        ({"offsets": np.array([0, 8, 4, 8, 12])}, "never fall"),
        ({"offsets": np.array([0, 4, 8, 8, 11])}, "offsets end at 11 points"),
        ({"ids": np.array(["1", "1", "3", "4"])}, "image 1 occurs twice"),
        ({"ids": np.array(["1", "2", "3", "5"])}, "lacks image 4"),
    ],
)
def test_points_that_cannot_be(inputs, tmp_path, changes, message):
    write_points(inputs.points["fine"], inputs.images, **changes)
    with pytest.raises(ValueError, match=r"fine\.npz.*" + message):
        make_proposals(inputs, METHOD, tmp_path / "p.npz")
    assert not (tmp_path / "p.npz").exists()


def test_points_go_to_their_images(inputs):
    by_image = read_points(inputs.points["cross"]).by_image()
    assert [len(by_image[name][0]) for name in "1234"] == [4, 4, 0, 4]


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
    made = counts["boxes"] + counts["empty_masks_dropped"]
    assert made >= 3 * (12 + 12)  # single clicks of coarse and fine alone
