"""The benchmark on a network and an image small enough for a test; its times are not judged."""

import re

import pytest
import torch

from adet.modeling.solov2.nms import mask_nms
from wsis.benchmarks.solov2 import Scale, mask_nms_loop, measure, median_times, print_table
from wsis.cli.main import program

CONFIG_FILE = "Quickstart/shapes_teacher.yaml"
SMALL = Scale(image_hw=(64, 96), points=(6, 2), candidates=40, nms_masks=12, nms_hw=(16, 20))


@pytest.fixture(scope="module")
def rows():
    return measure(SMALL, config_file=CONFIG_FILE, repeats=1)


def test_the_table_has_a_row_for_each_part(rows, capsys):
    parts = [row.what.split(",")[0].split(" (")[0] for row in rows]
    assert parts == [
        "plain forward",
        "prompt=point after the network",
        "prompt=point after the network",
        "whole image",
        "whole image",
        "prompt=none after the network",
        "mask NMS",
        "mask NMS",
    ]
    print_table(rows)
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)


def test_ratios_are_parts_of_the_forward_and_judged_by_their_targets(rows):
    forward = rows[0].seconds
    for row in rows[1:6]:
        assert row.ratio == row.seconds / forward > 0
    assert rows[7].ratio == rows[6].seconds / rows[7].seconds
    judged = [row for row in rows if row.target is not None]
    assert [row.target for row in judged] == [
        "<= 0.75 x forward",
        "<= 0.17 x forward",
        ">= 20 x faster",
    ]
    assert [row.reached for row in judged] == [
        judged[0].ratio <= 0.75,
        judged[1].ratio <= 0.17,
        judged[2].ratio >= 20,
    ]


def test_the_wanted_number_of_candidates_passes(rows):
    (count,) = re.findall(r"(\d+) candidates", rows[5].what)
    assert abs(int(count) - 40) <= 2  # near-ties may fall on either side


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_double_loop_is_mask_nms(threshold):
    generator = torch.Generator().manual_seed(1)
    masks = (torch.rand(20, 30, generator=generator) > 0.4).float()
    masks[3] = 0
    groups = torch.randint(0, 2, (20,), generator=generator)
    kept = mask_nms_loop(masks, groups, threshold=threshold)
    assert 1 < kept.sum() < 20 or threshold == 0.5
    assert torch.equal(kept, mask_nms(masks, groups, threshold=threshold))


def test_measured_functions_take_turns():
    calls = []
    functions = {"a": (1, lambda: calls.append("a")), "b": (2, lambda: calls.append("b"))}
    assert set(median_times(2, functions)) == {"a", "b"}
    assert "".join(calls) == "abbabb"


def test_counts_below_one_are_refused(capsys):
    assert program("benchmark", ["--repeats", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
