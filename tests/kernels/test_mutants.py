"""The tests of the kernels notice every planted bug: the tests' own test."""

import pytest

from tests.kernels.mutants import MUTANTS, TESTS, plant

each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name.replace(" ", "-") for m in MUTANTS])


@each_mutant
def test_the_bug_can_be_planted(mutant):
    """What it replaces is still there, and what comes out is Python."""
    assert mutant.module in TESTS
    compile(mutant.source(), mutant.module, "exec")


@pytest.mark.slow
@each_mutant
def test_the_bug_is_noticed(mutant):
    assert plant(mutant).caught
