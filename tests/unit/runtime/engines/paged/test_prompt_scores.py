"""
Log probabilities of prompts' tokens, compared with a forward pass of the whole prompt.
"""

import random
from dataclasses import replace

import pytest
import torch

from runtime.engines.base.protocol import FinishReason
from runtime.engines.paged import prompt_scores
from runtime.engines.paged.step import OutOfMemory
from runtime.models.decoder import attend_causal
from tests.unit.runtime.builders import make_model
from tests.unit.runtime.engines.paged.playing import make_engine
from tests.unit.runtime.requests import make_request

VOCABULARY = 300


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_prompt(seed, length):
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(length)]


def make_scored(id, prompt, max_tokens=3, top=2, **fields):
    request = make_request(id, prompt, max_tokens, 9.0)
    return replace(request, params=replace(request.params, prompt_logprobs=top, **fields))


def run(scheduler, *requests):
    """
    Return for each request: scores of its prompt, tokens, finish reason, cached tokens.
    """
    scores, tokens, ended, cached = {}, {}, {}, {}
    for request in requests:
        scheduler.submit(request, 0.0)
        scores[request.id], tokens[request.id] = [], []
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        cached |= dict(report.cached)
        for id, found in report.prompt_logprobs:
            assert not tokens[id], "they come before the first token"
            scores[id] += found
        for id, token in report.tokens:
            tokens[id].append(token)
        ended |= {id: reason for id, reason, _ in report.ended}
    return [(scores[r.id], tokens[r.id], ended[r.id], cached.get(r.id, 0)) for r in requests]


def expected(model, prompt, top):
    """
    Return the scores of a forward pass without a cache.
    """
    with torch.inference_mode():
        logits = model(torch.tensor(prompt), torch.arange(len(prompt)), attend_causal(1))
    logprobs = logits.log_softmax(-1)
    result = []
    for row, token in zip(logprobs, prompt[1:], strict=False):
        highest = row.topk(top)
        pairs = zip(highest.indices.tolist(), highest.values.tolist(), strict=True)
        result.append((row[token].item(), tuple(pairs)))
    return result


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for (logprob, top), (wanted_logprob, wanted_top) in zip(found, wanted, strict=True):
        assert logprob == pytest.approx(wanted_logprob, abs=1e-4)
        assert [id for id, _ in top] == [id for id, _ in wanted_top]
        assert [each for _, each in top] == pytest.approx([p for _, p in wanted_top], abs=1e-4)


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 12, 13, 100])
def test_a_prompt_gets_those_of_a_plain_forward_pass(model, monkeypatch, length, max_tokens):
    """
    In chunks of a step, and in blocks of rows; without an answer too.
    """
    monkeypatch.setattr(prompt_scores, "SCORED_ROWS", 5)
    scheduler, _ = make_engine(model, step_tokens=12)
    prompt = make_prompt(length, length)
    [(scores, tokens, ended, _)] = run(scheduler, make_scored(1, prompt, max_tokens))
    assert_same(scores, expected(model, prompt, 2))
    assert (len(tokens), ended) == (max_tokens, FinishReason.LENGTH)
    assert scheduler.allocator.used == 0


def test_rows_beside_it_are_not_touched(model):
    """
    Each row asks for another number, for an answer's own too, or for nothing.
    """
    prompts = [make_prompt(seed, 10 + 9 * seed) for seed in range(4)]
    scheduler, _ = make_engine(model, step_tokens=24)
    requests = [
        make_scored(0, prompts[0], top=0),
        make_request(1, prompts[1], 3, 9.0),
        make_scored(2, prompts[2], top=5, logprobs=1, presence_penalty=1.0),
        make_scored(3, prompts[3], top=1),
    ]
    mixed = run(scheduler, *requests)
    for request, (scores, tokens, *_), top in zip(requests, mixed, (0, None, 5, 1), strict=True):
        alone, _ = make_engine(model, step_tokens=24)
        plain = replace(request, params=replace(request.params, prompt_logprobs=None))
        assert run(alone, plain)[0][1] == tokens
        assert_same(scores, [] if top is None else expected(model, request.tokens, top))


def test_the_prefix_cache_is_not_read_but_filled(model):
    """
    Cached positions give no logits.  Others find what the prompt left.
    """
    scheduler, _ = make_engine(model)
    prompt = make_prompt(1, 40)
    for id in (1, 2):
        [(scores, _, _, cached)] = run(scheduler, make_scored(id, prompt))
        assert cached == 0
        assert_same(scores, expected(model, prompt, 2))
    [(scores, _, _, cached)] = run(scheduler, make_request(3, prompt, 3, 9.0))
    assert (scores, cached) == ([], 36)


def test_a_step_that_is_split_gives_the_same(model):
    """
    Each part has the targets of its own tokens.
    """

    class Small:
        """
        A runner that has memory for 7 tokens.
        """

        def __init__(self, runner):
            self._runner = runner

        def launch(self, step):
            if step.tokens > 7:
                raise OutOfMemory
            return self._runner.launch(step)

    scheduler, _ = make_engine(model, wrap=Small)
    prompt = make_prompt(1, 30)
    [(scores, *_)] = run(scheduler, make_scored(1, prompt))
    assert scheduler.oom_splits
    assert_same(scores, expected(model, prompt, 2))


def test_a_score_that_is_no_number_ends_its_row(model, monkeypatch):
    """
    JSON has no such numbers; its neighbour goes on.
    """
    real = prompt_scores.score_chunks

    def spoil(*args):
        found = real(*args)
        found[0, 0] = torch.tensor(float("nan")).view(torch.int32)
        return found

    monkeypatch.setattr("runtime.engines.paged.runner.score_chunks", spoil)
    scheduler, _ = make_engine(model)
    spoiled, other = run(
        scheduler, make_scored(1, make_prompt(1, 9)), make_request(2, make_prompt(2, 9), 3, 9.0)
    )
    assert spoiled[:3] == ([], [], FinishReason.NONFINITE)
    assert other[2] == FinishReason.LENGTH
    assert scheduler.allocator.used == 0
