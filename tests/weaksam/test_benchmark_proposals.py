"""The plain twins of the proposals' benchmark find what they are compared with."""

from wsis.benchmarks.proposals import measure


def test_twins_find_the_same(one_thread):
    proposals, suppression = measure(side=64, grid=3, boxes=200, repeats=1)
    assert proposals.what.endswith("the same boxes")
    assert suppression.what.endswith("the same") and "200 kept" not in suppression.what
