"""The reference's pickles, in both forms."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.weaksam.samples import make_dataset
from weaksam.proposals.files import read_proposal_file
from weaksam.proposals.images import ImageRecord
from weaksam.proposals.make import merge_proposals
from weaksam.proposals.released import read_released

IMAGES = [ImageRecord("5", "a.jpg", (100, 200)), ImageRecord("2008000002", "b.jpg", (50, 60))]
BOXES = [np.array([[0, 0, 199, 99], [0, 0, 0, 0], [3, 4, 9, 10]], np.float32), np.array([])]


def dump(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def as_dict(**changes: object) -> dict[str, object]:
    content = {
        "boxes": [BOXES[0].astype(np.uint16), np.zeros((0, 4), np.uint16)],
        "scores": [np.ones(3), np.ones((0, 1))],
        "indexes": [5, 2008000002],
    }
    return {**content, **changes}


@pytest.mark.parametrize("content", [BOXES, as_dict()])
def test_boxes_end_behind_the_last_pixel_and_empty_ones_are_dropped(tmp_path, content):
    found = read_released(dump(tmp_path / "p.pkl", content), IMAGES)
    assert found.boxes.tolist() == [[0, 0, 200, 100], [3, 4, 10, 11]]
    assert found.offsets.tolist() == [0, 2, 2]
    assert found.meta["empty_masks_dropped"] == 1


def test_dict_goes_by_its_indexes(tmp_path):
    turned = {key: value[::-1] for key, value in as_dict().items()}
    found = read_released(dump(tmp_path / "p.pkl", turned), IMAGES)
    assert found.offsets.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    "content,message",
    [
        (BOXES[:1], "1 images, the dataset has 2"),
        (as_dict(indexes=[5, 6]), "no image 2008000002"),
        (as_dict(indexes=[5, 5]), "occurs twice"),
        (as_dict(indexes=[5]), "differ in length"),
        (as_dict(indexes=[5, 2008000002, 7], boxes=[BOXES[0]] * 3, scores=[1] * 3), "3 images"),
        ({"boxes": []}, r"lacks \['scores', 'indexes'\]"),
        ([BOXES[0], np.ones((2, 5))], r"image 2008000002 has boxes of shape \(2, 5\)"),
        ([BOXES[0], np.array([[0, 0, 60, 20]])], "image 2008000002,.*outside"),
        ("text", "holds a str"),
    ],
)
def test_pickles_of_another_form_or_dataset(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"p\.pkl.*" + message):
        read_released(dump(tmp_path / "p.pkl", content), IMAGES)


def test_pickle_that_calls_something_is_refused(tmp_path):
    class Call:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "called"),))

    with pytest.raises(ValueError, match=r"p\.pkl.*mkdir"):
        read_released(dump(tmp_path / "p.pkl", [Call()]), IMAGES)
    assert not (tmp_path / "called").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        read_released(tmp_path / "none.pkl", IMAGES)


def test_conversion_writes_a_proposal_file(tmp_path):
    images, _ = make_dataset(tmp_path, 2)
    boxes = [np.array([[0, 0, 9, 9]], np.float32), np.zeros((1, 4), np.float32)]
    pickled = dump(tmp_path / "p.pkl", boxes)
    counts = merge_proposals([pickled], images, tmp_path / "p.npz")
    assert (counts.images, counts.boxes, counts.empty_masks_dropped) == (2, 1, 1)
    assert counts.by_source == {"released": 1} and counts.without == ("2",)
    assert read_proposal_file(tmp_path / "p.npz").boxes.tolist() == [[0, 0, 10, 10]]
