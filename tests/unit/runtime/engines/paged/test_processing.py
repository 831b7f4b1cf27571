"""
What rows ask of their logits, through the real scheduler and runner, on the CPU in fp32.
"""

import random
from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from runtime.engines.base.protocol import FinishReason, Submit
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged import processing
from runtime.engines.paged.step import Chunk, Step
from runtime.kernels import processors, reference
from runtime.kernels.processors import DROPPED
from runtime.models.decoder import attend_causal
from tests.unit.runtime.builders import make_model
from tests.unit.runtime.engines.paged.playing import Small, make_engine, play
from tests.unit.runtime.requests import make_join

VOCABULARY = 300
NEW = 12
ALL = {
    "top_k": {"temperature": 0.9, "top_k": 4},
    "min_p": {"temperature": 1.0, "min_p": 0.3},
    "presence": {"presence_penalty": 2.0},
    "frequency": {"temperature": 0.7, "frequency_penalty": 1.5},
    "repetition": {"repetition_penalty": 0.2},
    "bias": {"logit_bias": ((17, 30.0), (18, 29.0), (5, -100.0)), "presence_penalty": 2.0},
    "all": {
        "temperature": 0.8,
        "top_p": 0.8,
        "top_k": 9,
        "min_p": 0.01,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.2,
        "logit_bias": ((3, 2.0),),
        "logprobs": 3,
    },
}


@pytest.fixture(scope="module")
def model():
    return make_model()


def make_submit(id, prompt, max_tokens=NEW, **params):
    return Submit(id, prompt, SamplingParams(max_tokens, seed=id, **params), 9.0)


def make_prompt(seed, count=11):
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def logits_of(model, tokens):
    """
    Return the logits (1, v) behind *tokens*, without cache and batch.
    """
    with torch.inference_mode():
        ids, positions = torch.tensor(tokens), torch.arange(len(tokens))
        logits = model(ids, positions, attend_causal(1), torch.tensor([len(tokens) - 1]))
    return logits.clone()


def expected_answer(model, submit, stop_token_ids=()):
    """
    Return the answer by plain code: transformers' processors, and OpenAI's formula.
    """
    params, tokens, answer = submit.params, list(submit.tokens), []
    while len(answer) < params.max_tokens:
        x = logits_of(model, tokens)
        for token, bias in params.logit_bias:
            x[0, token] += bias
        if params.repetition_penalty != 1:
            x = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(
                torch.tensor([tokens]), x
            )
        for token in set(answer):
            x[0, token] -= params.frequency_penalty * answer.count(token) + params.presence_penalty
        if len(answer) < params.min_tokens:
            x[0, list(stop_token_ids)] = DROPPED
        if params.min_p and params.temperature:
            shares = (x / params.temperature).softmax(dim=-1)
            x = x.masked_fill(shares < params.min_p * shares.max(), DROPPED)
        if params.top_k:
            x = TopKLogitsWarper(params.top_k, filter_value=DROPPED)(None, x)
        numbers = [torch.tensor([n]) for n in (params.temperature, params.top_p)]
        place = torch.tensor([params.seed]), torch.tensor([len(tokens) - 1])
        (token,), _ = reference.sample(x, *numbers, *place)
        if int(token) in stop_token_ids:
            break
        tokens.append(int(token))
        answer.append(int(token))
    return answer


@pytest.mark.parametrize("name", ALL)
def test_an_answer_is_that_of_plain_code(model, name):
    """
    Each processor changes the answer, to what the reference says.
    """
    submit = make_submit(3, make_prompt(name), **ALL[name])
    scheduler, _ = make_engine(model)
    tokens, _ = play(scheduler, [(0, submit)])
    assert tokens[3] == expected_answer(model, submit)

    plain = {key: submit.params.__dict__[key] for key in ("temperature", "top_p")}
    scheduler, _ = make_engine(model)
    tokens, _ = play(scheduler, [(0, make_submit(3, make_prompt(name), **plain))])
    assert tokens[3] != expected_answer(model, submit), "the negative control"


@pytest.mark.parametrize("most", [None, 5])
def test_a_batch_of_mixed_rows_gives_each_its_own_answer(model, most, monkeypatch):
    """
    With arrivals spread over turns, slots used again, blocks of few rows, and steps that ran out of
    memory and were repeated.
    """
    monkeypatch.setattr(processing, "BLOCK_ROWS", 3)
    ways = [*ALL.values(), {}, {"temperature": 0.8}]
    submits = [make_submit(id, make_prompt(id), **ways[id % 9]) for id in range(27)]
    wrap = (lambda runner: Small(runner, model, most)) if most else (lambda runner: runner)
    scheduler, _ = make_engine(model, max_requests=6, wrap=wrap)
    rng = random.Random(1)
    tokens, ended = play(scheduler, [(rng.randrange(12), submit) for submit in submits])
    assert tokens == {submit.id: expected_answer(model, submit) for submit in submits}
    assert set(ended.values()) == {FinishReason.LENGTH}


def test_a_step_that_runs_out_of_memory_while_it_processes_is_repeated(model, monkeypatch):
    """
    From the same tokens, though those of the step were sampled before; nothing is counted twice.
    """
    penalize, refused = processors.penalize, []

    def penalize_one(logits, *rest):
        if len(logits) > 1:
            refused.append(len(logits))
            raise torch.OutOfMemoryError("no room")
        penalize(logits, *rest)

    monkeypatch.setattr(processors, "penalize", penalize_one)
    ways = [ALL["frequency"], {}, ALL["all"], ALL["presence"], {"temperature": 0.8}]
    submits = [make_submit(id, make_prompt(id), **params) for id, params in enumerate(ways)]
    scheduler, _ = make_engine(model)
    tokens, _ = play(scheduler, [(0, submit) for submit in submits])
    assert tokens == {submit.id: expected_answer(model, submit) for submit in submits}
    assert len(refused) > 1, "of a prompt and of decodes"


def test_plain_rows_are_not_touched(model, monkeypatch):
    """
    Their logits are sampled once and are bit for bit what they are alone; a step of plain rows
    never comes to `run`.
    """
    seen = []
    run = processing.LogitsProcessing.run

    def watch(self, asked, logits, result, sample):
        before = logits.clone()
        found = run(self, asked, logits, result, sample)
        assert torch.equal(logits, before)
        seen.append({row.slot for row in asked.processed})
        return found

    monkeypatch.setattr(processing.LogitsProcessing, "run", watch)
    plain, asking = make_submit(0, make_prompt(0)), make_submit(1, make_prompt(1), **ALL["all"])
    scheduler, _ = make_engine(model)
    alone, _ = play(scheduler, [(0, plain)])
    assert not seen
    both, _ = play(scheduler, [(0, replace(plain, id=2)), (0, asking)])
    assert both[2] == alone[0]
    assert len(seen) == NEW
    assert all(len(slots) == 1 for slots in seen), "the asking row alone"
    again, _ = play(scheduler, [(0, replace(plain, id=4)), (0, replace(plain, id=5))])
    assert again == {4: alone[0], 5: alone[0]}, "in slots whose requests asked before"
    assert len(seen) == NEW


def test_a_slot_forgets_the_request_before(model):
    """
    Biases and penalties of one request are not those of the next in its slot.
    """
    scheduler, _ = make_engine(model, max_requests=1)
    order = [ALL["bias"], ALL["min_p"], ALL["frequency"], ALL["frequency"], ALL["top_k"], {}]
    submits = [make_submit(id, make_prompt(id), **params) for id, params in enumerate(order)]
    tokens, _ = play(scheduler, [(0, submit) for submit in submits])
    assert tokens == {submit.id: expected_answer(model, submit) for submit in submits}


def test_no_stop_token_comes_before_min_tokens(model):
    """
    Then the answer ends at the first one: of the model, or of the request.
    """
    prompt = make_prompt(7)
    first = expected_answer(model, make_submit(1, prompt))
    stops, own = (first[0],), (first[2],)
    params = {"stop_token_ids": own, "min_tokens": 5}
    submit = make_submit(1, prompt, **params)
    expected = expected_answer(model, submit, stops + own)
    assert len(expected) >= 5
    scheduler, _ = make_engine(model, stop_token_ids=stops)
    tokens, _ = play(scheduler, [(0, submit)])
    assert tokens[1] == expected

    tokens, ended = play(scheduler, [(0, make_submit(2, prompt))])
    assert (tokens[2], ended[2]) == ([], FinishReason.STOP), "the negative control"


def test_logprobs_equal_log_softmax_of_the_models_logits(model):
    """
    Of each token, also of one that a penalty chose: before all processors.
    """
    prompt = make_prompt(4)
    asking = make_submit(1, prompt, logprobs=4, presence_penalty=2.0)
    other = make_submit(2, make_prompt(5), logprobs=0, temperature=1.0)
    scheduler, _ = make_engine(model)
    scheduler.submit(asking, 0.0)
    scheduler.submit(other, 0.0)
    scheduler.submit(make_submit(3, make_prompt(6)), 0.0)
    found, texts = {1: [], 2: []}, {1: list(prompt), 2: list(other.tokens)}
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        ids = [id for id, _ in report.tokens if id != 3]
        assert [id for id, _, _ in report.logprobs] == ids
        for id, *each in report.logprobs:
            found[id].append(each)
        for id, token in report.tokens:
            if id != 3:
                expected = logits_of(model, texts[id]).log_softmax(dim=-1)[0]
                logprob, top = found[id][-1]
                assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
                assert len(top) == (4 if id == 1 else 0)
                best = expected.topk(len(top))
                assert [t for t, _ in top] == best.indices.tolist()
                assert [p for _, p in top] == pytest.approx(best.values.tolist(), abs=1e-4)
                texts[id].append(token)
    assert [len(each) for each in found.values()] == [NEW, NEW]


def test_a_mask_decides_what_a_row_gets(model):
    """
    And nothing for the row beside it.
    """
    _, runner = make_engine(model, max_requests=2)
    prompts = make_prompt(1), make_prompt(2)
    joins = tuple(make_join(slot, [3 * slot + 1, 3 * slot + 2, 3 * slot + 3]) for slot in (0, 1))
    chunks = tuple(Chunk(slot, 0, prompt, True) for slot, prompt in enumerate(prompts))
    step = Step(joins, (), chunks)
    plain = runner.launch(step).collect().tokens
    allowed = (plain[1] + 7) % VOCABULARY
    mask = bytearray(4 * -(-VOCABULARY // 32))
    mask[allowed // 8] |= 1 << allowed % 8
    masked = runner.launch(replace(step, masks=((1, bytes(mask)),))).collect().tokens
    assert masked == [plain[0], allowed]
    assert runner.launch(step).collect().tokens == plain


def test_token_ids_that_the_model_does_not_have_are_ignored(model):
    """
    The API refuses them; on a GPU one would end the process.
    """
    params = {
        "logit_bias": ((VOCABULARY, 100.0), (-1, 100.0)),
        "stop_token_ids": (VOCABULARY, 2**31 - 1),
        "min_tokens": 3,
    }
    scheduler, _ = make_engine(model)
    tokens, _ = play(scheduler, [(0, make_submit(1, make_prompt(1), **params))])
    assert tokens[1] == expected_answer(model, make_submit(1, make_prompt(1)))


def test_a_row_that_is_not_finite_fails_alone_whatever_it_asks_for(model):
    """
    Its log probabilities are dropped; its neighbours' are not.
    """
    broken = make_model()
    broken.embedding[299] = float("nan")
    scheduler, _ = make_engine(broken)
    submits = [
        make_submit(1, [299, 4], **ALL["all"]),
        make_submit(2, make_prompt(2, 9)[:9], **ALL["all"]),
    ]
    submits[1] = replace(submits[1], tokens=[token % 299 for token in submits[1].tokens])
    for submit in submits:
        scheduler.submit(submit, 0.0)
    ended, count = {}, 0
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        ended |= {id: reason for id, reason, _ in report.ended}
        count += len(report.logprobs)
    assert ended == {1: FinishReason.NONFINITE, 2: FinishReason.LENGTH}
    assert count == NEW


def test_a_warm_up_leaves_nothing_behind(model):
    """
    Answers after it are those of an engine without it.
    """
    scheduler, runner = make_engine(model)
    runner._processing.warm_up()
    submits = [make_submit(id, make_prompt(id), **ways) for id, ways in enumerate(ALL.values())]
    tokens, _ = play(scheduler, [(0, submit) for submit in submits])
    assert tokens == {submit.id: expected_answer(model, submit) for submit in submits}
