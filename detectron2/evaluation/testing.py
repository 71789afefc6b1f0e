"""Print, check and flatten evaluation results: `{task: {metric: number}}`."""

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]


def print_csv_format(results: Mapping[str, Any], mode: str | None = None) -> None:
    """Log each task's main metrics (names without a "-") in lines that paste into a spreadsheet.

    `mode` says what made the figures (a prompt, forced scores, a subset).
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

    Returns True if all agree; otherwise the program ends with exit code 1.
    """
    differing = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric, math.nan)
        if not abs(actual - expected) <= tolerance:  # so that NaN differs
            differing.append(f"{task}/{metric} is {actual}, expected {expected} +- {tolerance}")
    if differing:
        text = "; ".join(differing)
        logging.getLogger(__name__).error("TEST.EXPECTED_RESULTS does not hold: %s", text)
        sys.exit(1)
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the keys of nested dicts with "/": {"segm": {"AP": 1.0}} -> {"segm/AP": 1.0}."""
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": inner for name, inner in flatten_results_dict(value).items()}
        else:
            flat[key] = value
    return flat
