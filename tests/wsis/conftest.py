"""Fixtures of the tests of recipes and of the runner."""

import argparse
from collections.abc import Callable

import pytest

from wsis.cli import pointwssis
from wsis.recipes.plan import Plan


@pytest.fixture
def make_plan(tmp_path, monkeypatch) -> Callable[..., Plan]:
    """A plan from the words of `wsis run pointwssis`; everything lies below tmp_path."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))
    parser = argparse.ArgumentParser()
    pointwssis.add_arguments(parser)

    def build(*words: str, gpus: int = 8) -> Plan:
        monkeypatch.setenv("NUM_GPUS", str(gpus))
        return pointwssis.make_plan(parser.parse_intermixed_args(words))

    return build
