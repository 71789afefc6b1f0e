"""Fixtures of the tests of recipes and of the runner."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wsis.weak_data import make_tags, make_voc, run_stages
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


@pytest.fixture(scope="session")
def voc(tmp_path_factory) -> Path:
    """Six images as VOC has them; see weak_data."""
    return make_voc(tmp_path_factory.mktemp("voc") / "VOC2007")


@pytest.fixture(scope="session")
def done(voc, tmp_path_factory) -> Path:
    """A folder with the tags of `voc` and what every stage made of them; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    run_stages(make_tags(voc, folder / "tags.json"), voc / "JPEGImages", folder)
    return folder
