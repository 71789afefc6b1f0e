"""Every program of these tests succeeds on the files as they are, so its refusals are earned."""

import pytest

from tests.bad_input.world import PROGRAMS, World, run


@pytest.mark.parametrize("program", PROGRAMS)
def test_unchanged_files_are_accepted(world: World, program: str):
    assert run(program, world.words(program)) == 0
