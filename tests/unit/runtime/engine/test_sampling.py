import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.sampling import choose

LOGITS = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]]))


def test_temperature_zero_takes_the_likeliest():
    """
    Whatever top_p and the draw are.
    """
    assert choose(LOGITS, [0.0], [0.1], [0.99]).tolist() == [1]


@given(st.floats(0, 1, exclude_max=True))
def test_a_draw_falls_where_the_shares_say(draw):
    """
    At temperature 1 the tokens share the line from 0 to 1, the likeliest first.
    """
    bounds = [(0.4, 1), (0.7, 3), (0.9, 2), (1.0, 0)]
    near = any(abs(draw - bound) < 1e-5 for bound, _ in bounds)
    wanted = next(token for bound, token in bounds if draw < bound)
    assert near or choose(LOGITS, [1.0], [1.0], [draw]).tolist() == [wanted]


@given(st.floats(0, 1), st.sampled_from([(0.3, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3})]))
def test_top_p_keeps_the_smallest_set_that_reaches_it(draw, kept):
    """
    No draw leaves the set, and never is it empty.
    """
    top_p, tokens = kept
    assert set(choose(LOGITS, [1.0], [top_p], [draw]).tolist()) <= tokens


def test_each_row_has_its_own_rules():
    """
    Greedy and sampled rows stand side by side.
    """
    logits = LOGITS.expand(3, 4)
    assert choose(logits, [0.0, 1.0, 1.0], [1.0, 1.0, 0.3], [0.0, 0.95, 0.95]).tolist() == [1, 0, 1]


def test_low_temperature_is_nearly_greedy():
    """
    At 0.01 the likeliest takes all of the line.
    """
    assert choose(LOGITS, [0.01], [1.0], [0.999]).tolist() == [1]
