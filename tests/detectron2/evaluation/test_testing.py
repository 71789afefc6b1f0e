import logging

import pytest

from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict


def test_flatten_joins_keys():
    nested = {"segm": {"AP": 1.0, "sizes": {"small": 2}}, "loss": 3}
    assert flatten_results_dict(nested) == {"segm/AP": 1.0, "segm/sizes/small": 2, "loss": 3}


def test_print_csv_shows_main_metrics_and_the_mode(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format(
            {"segm": {"AP": 12.34567, "AP50": float("nan"), "AP-person": 1.0}}, mode="prompt=point"
        )
    assert "Task: segm (prompt=point)" in caplog.text
    assert "AP,AP50" in caplog.text
    assert "12.3457,nan" in caplog.text
    assert "person" not in caplog.text


def test_print_csv_takes_empty_results_and_refuses_others():
    print_csv_format({})
    with pytest.raises(ValueError, match="expected a dict"):
        print_csv_format([1])


def cfg_expecting(*rows):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = list(rows)
    return cfg


def test_verify_results_within_the_tolerance():
    results = {"segm": {"AP": 38.4}}
    assert verify_results(cfg_expecting(), results)
    assert verify_results(cfg_expecting(["segm", "AP", 38.5, 0.2]), results)


@pytest.mark.parametrize("results", [{"segm": {"AP": 38.0}}, {}, {"segm": {"AP": float("nan")}}])
def test_verify_results_ends_the_program_otherwise(results):
    with pytest.raises(SystemExit) as error:
        verify_results(cfg_expecting(["segm", "AP", 38.5, 0.2]), results)
    assert error.value.code == 1
