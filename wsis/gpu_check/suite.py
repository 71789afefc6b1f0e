"""All checks in the order in which they run: the slow ones last, in case time is up."""

from . import parity, processes, resources, training
from .results import Check
from .scenes import Context


def all_checks(context: Context, *, tests_only: bool) -> list[Check]:
    """The checks for a device.

    Args:
        tests_only: leave out the measurements of speed.
    """
    found = [
        *parity.checks(context.precisions),
        *training.training_checks(context.precisions),
        *resources.memory_checks(),
    ]
    if not tests_only:
        found += resources.speed_checks(context.scale.speed_batches)
    return [*found, *processes.checks(), *training.compile_checks()]
