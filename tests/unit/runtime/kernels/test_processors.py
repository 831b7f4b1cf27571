"""
Logits processors against those of transformers, in fp32 on the CPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runtime.kernels import processors
from runtime.kernels.processors import DROPPED, IN_PROMPT, MOST_SELECTED
from runtime.kernels.reference import sample

SIZE = 97  # not a multiple of 32
seeds = st.integers(0, 2**31)


def draw_logits(seed, rows, size=SIZE):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((rows, size), generator=rng) * 4


def kept(logits):
    """
    Return which tokens were not dropped, as transformers marks them and as we do.
    """
    return (logits > DROPPED) & torch.isfinite(logits)


def history_of(prompt, answer, size=SIZE):
    history = torch.zeros(size, dtype=torch.int32)
    history[list(prompt)] = IN_PROMPT
    for token in answer:
        history[token] += 1
    return history


@given(
    seeds,
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=30),
    st.lists(st.integers(0, SIZE - 1), max_size=30),
    st.sampled_from([0.5, 1.0, 1.1, 1.3, 2.0]),
)
@settings(max_examples=30, deadline=None)
def test_repetition_penalty_equals_transformers(seed, prompt, answer, penalty):
    """
    Bit for bit, for tokens of the prompt and of the answer.
    """
    logits = draw_logits(seed, 1)
    ids = torch.tensor([prompt + answer])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    numbers = [torch.tensor([number]) for number in (penalty, 0.0, 0.0)]
    processors.penalize(logits, history_of(prompt, answer)[None], *numbers)
    assert torch.equal(logits, expected)


@given(
    seeds,
    st.lists(st.integers(0, SIZE - 1), max_size=30),
    st.sampled_from([-2.0, 0.0, 0.75]),
    st.sampled_from([-2.0, 0.0, 0.75]),
)
@settings(max_examples=30, deadline=None)
def test_frequency_and_presence_follow_openai(seed, answer, frequency, presence):
    """
    mu[j] - c[j] * frequency - (c[j] > 0) * presence; c counts the answer alone.

    Source: OpenAI's API reference, "frequency and presence penalties".
    """
    logits = draw_logits(seed, 1)
    expected = logits.clone()
    for token in set(answer):
        count = answer.count(token)
        expected[0, token] -= torch.tensor(frequency) * count
        expected[0, token] -= presence
    numbers = [torch.tensor([number]) for number in (1.0, frequency, presence)]
    processors.penalize(logits, history_of(range(50), answer)[None], *numbers)
    assert torch.equal(logits, expected)


@given(seeds, st.lists(st.integers(1, 200), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_top_k_equals_transformers(seed, top_k):
    """
    Row by row, with any k of each; ties with the last one stay.
    """
    logits = draw_logits(seed, len(top_k)).round()  # many ties
    expected = [
        TopKLogitsWarper(k, filter_value=DROPPED)(None, row[None].clone())
        for k, row in zip(top_k, logits, strict=True)
    ]
    clamped = torch.tensor([min(k, SIZE) for k in top_k])
    processors.keep_top_k(logits, clamped, int(clamped.max()))
    assert torch.equal(logits, torch.cat(expected))


@pytest.mark.parametrize("k", [MOST_SELECTED - 1, MOST_SELECTED, MOST_SELECTED + 1])
def test_a_large_top_k_is_found_by_sorting(k):
    """
    The same set on both sides of the bound; a row without top_k keeps all.
    """
    logits = draw_logits(1, 2, 2 * MOST_SELECTED)
    expected = TopKLogitsWarper(k, filter_value=DROPPED)(None, logits[:1].clone())
    before = logits[1].clone()
    processors.keep_top_k(logits, torch.tensor([k, 0]), k)
    assert torch.equal(logits[:1], expected)
    assert torch.equal(logits[1], before)


@given(seeds, st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.sampled_from([0.3, 1.0, 1.7]))
@settings(max_examples=30, deadline=None)
def test_min_p_equals_transformers(seed, min_p, temperature):
    """
    The same tokens, by the probabilities after the temperature.
    """
    logits = draw_logits(seed, 1)
    expected = MinPLogitsWarper(min_p)(None, logits / temperature)
    processors.keep_min_p(logits, torch.tensor([temperature]), torch.tensor([min_p]))
    assert torch.equal(kept(logits), kept(expected))


@given(
    seeds,
    st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100, width=32), min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_bias_equals_transformers(seed, bias):
    """
    Padding adds nothing, also to token 0.
    """
    logits = draw_logits(seed, 1)
    # A value of its own for each token: it skips biases of 0.
    expected = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})(
        torch.zeros((1, 1), dtype=torch.long), logits.clone()
    )
    tokens = torch.tensor([[*bias, 0, 0]])
    processors.add_bias(logits, tokens, torch.tensor([[*bias.values(), 0.0, 0.0]]))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


@given(seeds, st.sets(st.integers(0, SIZE - 1), min_size=1))
@settings(max_examples=30, deadline=None)
def test_a_mask_keeps_the_tokens_whose_bit_is_set(seed, allowed):
    """
    In rows with a mask; the others are unchanged.
    """
    words = torch.zeros((1, -(-SIZE // 32)), dtype=torch.int64)
    for token in allowed:
        words[0, token // 32] |= 1 << token % 32
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    logits = draw_logits(seed, 3)
    before = logits.clone()
    processors.apply_masks(logits, torch.tensor([1]), signed)
    assert set(kept(logits)[1].nonzero()[:, 0].tolist()) == allowed
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert torch.equal(logits[1, list(allowed)], before[1, list(allowed)])


def test_dropped_tokens_are_those_of_their_row():
    """
    A token is dropped in the row beside it, and in no other.
    """
    logits = draw_logits(0, 2)
    processors.drop_tokens(logits, torch.tensor([1, 1]), torch.tensor([4, 9]))
    assert (~kept(logits)).nonzero().tolist() == [[1, 4], [1, 9]]


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_log_probabilities_equal_log_softmax(top):
    """
    Of the chosen token and of the likeliest, in their order.
    """
    logits = draw_logits(3, 4)
    tokens = torch.tensor([0, 5, 96, 41])
    expected = logits.log_softmax(dim=-1)
    chosen, highest, ids = processors.log_probabilities(logits, tokens, top)
    torch.testing.assert_close(chosen, expected.gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(highest, expected.sort(descending=True).values[:, :top])
    torch.testing.assert_close(highest, expected.gather(1, ids))


def test_the_history_of_plain_rows_stays_empty():
    """
    Row 0 stands for all of them, any number of times in a step.
    """
    history = torch.zeros((3, SIZE), dtype=torch.int32)
    processors.count_tokens(history, torch.tensor([0, 2, 0]), torch.tensor([4, 4, 4]))
    processors.count_tokens(history, torch.tensor([1, 2]), torch.tensor([7, 4]))
    assert history.nonzero().tolist() == [[1, 7], [2, 4]]
    assert history[2, 4] == 2


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_top_p_draws_the_tokens_that_transformers_keeps(top_p):
    """
    All of them, in many draws, and no other.
    """
    logits = torch.tensor([[1.0, 3.0, -1.0, 2.5, 0.2, 2.0, -4.0, 1.5]])
    expected = TopPLogitsWarper(top_p)(None, logits.clone())
    draws = 2000
    numbers = torch.ones(draws), torch.full((draws,), top_p)
    tokens, _ = sample(
        logits.expand(draws, -1), *numbers, torch.arange(draws), torch.zeros(draws).long()
    )
    assert set(tokens.tolist()) == set(kept(expected)[0].nonzero()[:, 0].tolist())
