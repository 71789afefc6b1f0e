"""Check a machine's accelerator: does everything compute what the CPU computes, and how fast?

`results` runs checks and reports them; `scenes` makes the networks and their inputs; `parity`,
`training`, `processes` and `resources` hold the checks; `suite` lists them. Nothing is downloaded:
weights are random and seeded, images are drawn.
"""

from .results import Check, Result, Status, run_checks
from .scenes import FULL, QUICK, Context, Scale
from .suite import all_checks

__all__ = [
    "FULL",
    "QUICK",
    "Check",
    "Context",
    "Result",
    "Scale",
    "Status",
    "all_checks",
    "run_checks",
]
