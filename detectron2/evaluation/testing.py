"""Print, check and flatten evaluation results: `{task: {metric: number}}`."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]


def print_csv_format(results: Mapping[str, Any], mode: str | None = None) -> None:
    """Log each task's main metrics (names without a "-") in lines that paste into a spreadsheet.

    `mode` says what made the figures (a prompt, forced scores, a subset) and is logged with them.
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"expected a dict {{task: {{metric: number}}}}, got {results!r}")
    logger = logging.getLogger(__name__)
    suffix = "" if mode is None else f" ({mode})"
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s%s", task, metrics, suffix)
            continue
        # "AP-person" and the like are for the table, not for the spreadsheet.
        main = {name: value for name, value in metrics.items() if "-" not in name}
        logger.info("copypaste: Task: %s%s", task, suffix)
        logger.info("copypaste: %s", ",".join(main))
        logger.info("copypaste: %s", ",".join(f"{value:.4f}" for value in main.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare with `TEST.EXPECTED_RESULTS`, rows of (task, metric, expected, tolerance).

    Returns True where all agree. Otherwise the program ends with exit code 1.
    """
    expected_results = cfg.TEST.EXPECTED_RESULTS
    if not len(expected_results):
        return True
    ok = True
    for task, metric, expected, tolerance in expected_results:
        actual = results.get(task, {}).get(metric)
        if actual is None or not math.isfinite(actual) or abs(actual - expected) > tolerance:
            ok = False
    logger = logging.getLogger(__name__)
    if ok:
        logger.info("Results verification passed.")
        return True
    logger.error("Results verification failed!")
    logger.error("Expected results: %s", pprint.pformat(expected_results))
    logger.error("Actual results: %s", pprint.pformat(results))
    sys.exit(1)


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the keys of nested dicts by "/": {"segm": {"AP": 1.0}} -> {"segm/AP": 1.0}."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": inner for name, inner in flatten_results_dict(value).items()}
        else:
            flat[key] = value
    return flat
