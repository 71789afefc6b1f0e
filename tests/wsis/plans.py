"""Plans and stages as tests need them."""

from pathlib import Path

from wsis.recipes.plan import Plan
from wsis.recipes.pointwssis import build_stages
from wsis.runner import Command, Machines, Run, Stage

WRITE = "open({!r}, 'a').write('x')"


def stage_named(plan: Plan, name: str) -> Stage:
    return next(stage for stage in build_stages(plan) if stage.name == name)


def toy_stage(output: Path, name: str, needs: tuple[Path, ...] = (), code: str = "") -> Stage:
    """A stage that appends a letter to what it makes, after running `code`."""
    made, program = output / f"{name}.txt", output / f"{name}.py"
    output.mkdir(parents=True, exist_ok=True)
    program.write_text(f"{code}\n{WRITE.format(str(made))}\n")
    return Stage(name, name, Command(str(program)), needs, (made,))


def toy_stages(output: Path, code: str = "") -> tuple[Stage, Stage]:
    """Two stages, the second of the first's result; the second may fail."""
    first = toy_stage(output, "first")
    return first, toy_stage(output, "second", first.makes, code)


def toy_run(output: Path, stages: tuple[Stage, ...], machines: Machines | None = None) -> Run:
    return Run(stages, output, machines or Machines(num_gpus=0))
