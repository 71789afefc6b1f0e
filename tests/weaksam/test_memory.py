"""The benchmark's twin gives the same maps, so that its memory is a fair measure."""

from pathlib import Path

import pytest
import torch

from weaksam.clues.weaktr import WeakTrConfig
from wsis.benchmarks.clues import LAYERS, maps_with_all_attention, measure


def test_twin_gives_the_same_maps():
    torch.manual_seed(0)
    model = WeakTrConfig(4, None, 24, 12, 2, 8, 32, mlp_ratio=2).build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(1, 3, 40, 56) * 255
    maps = model.maps(images, layers=LAYERS)
    fine, cross = maps_with_all_attention(model, images)
    torch.testing.assert_close(maps.fine, fine)
    torch.testing.assert_close(maps.cross, cross)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="memory is read as Linux has it"
)
def test_maps_take_a_fifth_of_the_memory_at_most():
    (row,) = measure((600, 900), threads=1)  # the twin takes 2 GB
    assert row.reached, row
