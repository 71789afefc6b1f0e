"""Recorded figures of the reference implementation (PointWSSIS bd3156e) and its small data set."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mrn_figures.npz") as figures:
        return dict(figures)


@pytest.fixture(scope="session")
def tinycoco() -> Path:
    return GOLDEN / "mrn_tinycoco"


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN
