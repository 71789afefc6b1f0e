"""Parts of an output: continued by any number of processes, never mixed, merged in order."""

import json

import pytest

from weaklabels.files import dumps
from weaklabels.shards import RecordShards

IDS = list(range(30, 0, -1))


def a_record(image_id, **more):
    return {"image_id": image_id, "file_name": "é.jpg", "instances": [{"score": 0.1}], **more}


def run(shards, world_size, stop_after=None):
    """What `world_size` processes do, each stopping after some records; True if all were made."""
    shards.open()
    finished = shards.finished_ids()
    missing = [image_id for image_id in IDS if image_id not in finished]
    for rank in range(world_size):
        with shards.writer(rank, world_size) as writer:
            for image_id in missing[rank::world_size][:stop_after]:
                writer.append(a_record(image_id))
    return len(shards.finished_ids()) == len(IDS)


@pytest.mark.parametrize("sizes", [(1,), (2,), (4, 1), (1, 4), (3, 2, 5)])
def test_any_number_of_processes_ends_with_the_same_bytes(tmp_path, sizes):
    shards = RecordShards(tmp_path / "out.jsonl", {"a": 1}, lists_unmatched=False)
    for world_size in sizes[:-1]:
        assert not run(shards, world_size, stop_after=3)
    assert run(shards, sizes[-1])
    report = shards.merge(IDS)
    assert (report.images, report.instances) == (30, 30)
    assert not shards.is_complete()
    shards.remove()
    assert shards.is_complete()
    want = "".join(dumps(a_record(i)) + "\n" for i in IDS)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == want
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_half_a_line_is_cut_and_made_again(tmp_path):
    shards = RecordShards(tmp_path / "out.jsonl", {}, lists_unmatched=False)
    run(shards, 2, stop_after=5)
    part = shards.parts()[0]
    part.write_bytes(part.read_bytes()[:-9])
    assert len(shards.finished_ids()) == 9
    assert run(shards, 2)
    assert shards.merge(IDS).images == 30


def test_images_that_are_missing_are_left_out_and_visited_in_order(tmp_path):
    shards = RecordShards(tmp_path / "out.jsonl", {}, lists_unmatched=False)
    run(shards, 1, stop_after=4)
    seen = []
    report = shards.merge(sorted(IDS), visit=lambda record: seen.append(record["image_id"]))
    assert report.images == 4 and seen == [27, 28, 29, 30]


def test_unmatched_points_are_listed_beside_the_output(tmp_path):
    shards = RecordShards(tmp_path / "out.jsonl", {})
    shards.open()
    lost = {"category_id": 3, "point": [1.0, 2.0], "reason": "suppressed"}
    with shards.writer(0, 1) as writer:
        writer.append(a_record(1, unmatched=[lost, lost]))
        writer.append(a_record(2, unmatched=[]))
    assert shards.merge([1, 2]).unmatched == {(3, "suppressed"): 2}
    content = json.loads((tmp_path / "out.unmatched.json").read_text())
    assert content["counts"] == [{"category_id": 3, "reason": "suppressed", "count": 2}]
    assert content["points"] == [{"image_id": 1, **lost}] * 2
    assert "unmatched" not in (tmp_path / "out.jsonl").read_text()


def test_other_settings_are_refused_by_name(tmp_path):
    RecordShards(tmp_path / "out.jsonl", {"weights": "one", "size": [1, 2]}).open()
    RecordShards(tmp_path / "out.jsonl", {"weights": "one", "size": (1, 2)}).open()
    with pytest.raises(ValueError, match="weights: 'one' then, 'two' now.*--output"):
        RecordShards(tmp_path / "out.jsonl", {"weights": "two", "size": [1, 2]}).open()


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_damaged_settings_and_parts_are_named(tmp_path, text):
    shards = RecordShards(tmp_path / "out.jsonl", {})
    shards.open()
    (shards.folder / "settings.json").write_text(text)
    with pytest.raises(ValueError, match="settings.json: not"):
        shards.open()
    (shards.folder / "rank0of1.jsonl").write_text(f"{text}\n")
    with pytest.raises(ValueError, match="rank0of1.jsonl: at byte 0 is no record"):
        shards.finished_ids()


def test_a_merge_without_parts_never_overwrites_the_output(tmp_path):
    """Two runs on one output: the second one to finish finds the folder gone."""
    shards = RecordShards(tmp_path / "out.jsonl", {}, lists_unmatched=False)
    run(shards, 1)
    shards.merge(IDS)
    shards.remove()
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(ValueError, match="did another run write"):
        shards.merge(IDS)
    assert (tmp_path / "out.jsonl").read_bytes() == before
