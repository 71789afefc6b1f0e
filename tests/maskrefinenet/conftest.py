"""Recorded figures of the reference implementation (PointWSSIS bd3156e) and its small dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrefinenet import MaskRefineNet
from tests.golden.inputs import fill_state_dict

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and on a busy machine their threads wait in turns."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def reference_network() -> MaskRefineNet:
    """The released architecture with the weights of the recorded figures; not to be changed."""
    return fill_state_dict(MaskRefineNet()).eval()
