"""Run stages: skip what is finished, resume what was interrupted, use what is given.

A stage is a command with the files that it reads and makes. The runner knows no stage by name. What
stands at a stage's output although the stage was never started is the user's: it is checked, used
as it is, and never overwritten.
"""

from .commands import ROOT, Command, FlagValue, Launch, Machines
from .run import dry_run, run_stages, set_aside
from .stages import Check, PipelineError, Run, Stage, State, find_states

__all__ = [
    "ROOT",
    "Check",
    "Command",
    "FlagValue",
    "Launch",
    "Machines",
    "PipelineError",
    "Run",
    "Stage",
    "State",
    "dry_run",
    "find_states",
    "run_stages",
    "set_aside",
]
