"""
Logits processing on a GPU: behind CUDA graphs, without a wait, equal to the same code on the CPU.
"""

import random
from dataclasses import replace

import pytest
import torch

from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import Chunk, Decode, Join, Step
from runtime.kernels import processors, reference
from tests.gpu.test_runner import PAGE, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

VOCABULARY = 32000
PROMPT = 20
STOPS = (5, 6)
WAYS = [
    {},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 0.9, "top_k": 2000},
    {"temperature": 1.0, "min_p": 0.2},
    {"presence_penalty": 2.0, "frequency_penalty": 1.0},
    {"repetition_penalty": 0.2},
    {"logit_bias": ((9, 100.0), (8, 99.0)), "presence_penalty": 2.0},
    {"logprobs": 20},
    {"temperature": 0.8, "logprobs": 0, "top_k": 9, "repetition_penalty": 1.3},
    {"logit_bias": ((5, 100.0),), "min_tokens": 4},
]


class Rows:
    """
    Rows of one runner, slot s with the parameters WAYS[s % len(WAYS)].

    Args:
        asks: False for rows that ask for nothing.
    """

    def __init__(self, model, count, *, asks=True, has_graphs=True):
        self.rng = random.Random(7)
        self.prompts = [
            [self.rng.randrange(VOCABULARY) for _ in range(PROMPT)] for _ in range(count)
        ]
        self.answers = [[] for _ in range(count)]
        self.params = [
            SamplingParams(99, seed=slot, **(WAYS[slot % len(WAYS)] if asks else {}))
            for slot in range(count)
        ]
        self.runner = PagedRunner(
            model, slots=count, pages=1 + count, page_tokens=PAGE, row_pages=1, kv_dtype=None
        )
        if has_graphs:
            self.runner.capture()
        self.joins = [
            Join(
                slot,
                (slot + 1,),
                params,
                prompt=prompt if params.repetition_penalty != 1 else (),
                stop_token_ids=STOPS if params.min_tokens else (),
                stops_from=PROMPT - 1 + params.min_tokens if params.min_tokens else 0,
            )
            for slot, (params, prompt) in enumerate(zip(self.params, self.prompts, strict=True))
        ]
        self.logits = None
        run = self.runner._processing.run

        def watch(asked, logits, result, sample):
            self.logits = logits.clone()
            return run(asked, logits, result, sample)

        self.runner._processing.run = watch

    def prompt_step(self):
        chunks = [Chunk(slot, 0, prompt, True) for slot, prompt in enumerate(self.prompts)]
        return Step(tuple(self.joins), (), tuple(chunks))

    def decode_step(self):
        return Step(
            (),
            tuple(
                Decode(slot, PROMPT - 1 + len(answer)) for slot, answer in enumerate(self.answers)
            ),
            (),
        )

    def take(self, outcome):
        assert all(outcome.is_finite)
        for answer, token in zip(self.answers, outcome.tokens, strict=True):
            answer.append(token)

    def expected(self, slot, logits):
        """
        Return the token of *slot* by the processors on the CPU, from the step's own logits (v,).
        """
        params, answer = self.params[slot], self.answers[slot]
        x = logits.cpu()[None].clone()
        for token, bias in params.logit_bias:
            x[0, token] += bias
        history = torch.zeros((1, VOCABULARY), dtype=torch.int32)
        if params.repetition_penalty != 1:
            history[0, self.prompts[slot]] = processors.IN_PROMPT
        for token in answer:
            history[0, token] += 1
        numbers = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        processors.penalize(x, history, *(torch.tensor([number]) for number in numbers))
        if len(answer) < params.min_tokens:
            x[0, list(STOPS)] = processors.DROPPED
        if params.min_p:
            numbers = params.temperature, params.min_p
            processors.keep_min_p(x, *(torch.tensor([number]) for number in numbers))
        if params.top_k:
            processors.keep_top_k(x, torch.tensor([params.top_k]), params.top_k)
        numbers = [torch.tensor([number]) for number in (params.temperature, params.top_p)]
        place = torch.tensor([slot]), torch.tensor([PROMPT - 1 + len(answer)])
        (token,), _ = reference.sample(x, *numbers, *place)
        return int(token)


@pytest.mark.parametrize("has_graphs", [True, False])
@pytest.mark.parametrize("count", [1, 10, 70])
def test_each_row_gets_the_token_of_the_reference(count, has_graphs):
    """
    From the logits of the same step; the log probabilities are those of the raw logits.
    """
    rows = Rows(make_model("GlmForCausalLM"), count, has_graphs=has_graphs)
    different = 0
    for turn in range(8):
        outcome = rows.runner.launch(rows.decode_step() if turn else rows.prompt_step()).collect()
        if count == 1:
            assert rows.logits is None, "a plain row"
            rows.take(outcome)
            continue
        for slot, token in enumerate(outcome.tokens):
            expected = rows.expected(slot, rows.logits[slot])
            # exp and log of the two devices differ in the last bit: a draw may, too.
            different += token != expected
            if rows.params[slot].logprobs is None:
                assert slot not in outcome.logprobs
                continue
            shares = rows.logits[slot].log_softmax(dim=-1)
            found = outcome.logprobs[slot]
            assert found.logprob == pytest.approx(float(shares[token]), abs=1e-4)
            best = shares.topk(rows.params[slot].logprobs).values.tolist()
            assert [each for _, each in found.top] == pytest.approx(best, abs=1e-4)
            assert all(each == pytest.approx(float(shares[id]), abs=1e-4) for id, each in found.top)
        rows.take(outcome)
    assert different <= count * 8 // 50
    for slot, params in enumerate(rows.params):
        if params.min_tokens:
            assert 5 not in rows.answers[slot][: params.min_tokens]
            assert rows.answers[slot][params.min_tokens] == 5


def test_plain_rows_are_bit_identical_beside_rows_that_ask():
    """
    Their tokens are those of a batch in which no row asks, and the others' are not.
    """
    model = make_model("GlmForCausalLM")
    asking, plain = Rows(model, 20), Rows(model, 20, asks=False)
    for rows in (asking, plain):
        for turn in range(8):
            step = rows.decode_step() if turn else rows.prompt_step()
            rows.take(rows.runner.launch(step).collect())
    assert plain.logits is None, "its steps are never processed"
    for slot in (0, 10, 7, 17):  # without a field, or with log probabilities alone
        assert asking.answers[slot] == plain.answers[slot]
    assert asking.answers != plain.answers, "the negative control"


@pytest.mark.parametrize("has_graphs", [True, False])
def test_no_step_waits_for_the_device(has_graphs):
    """
    Neither when rows join nor when they decode, with masks too.
    """
    rows = Rows(make_model("GlmForCausalLM"), 20, has_graphs=has_graphs)
    mask = b"\xff" * (VOCABULARY // 8)
    rows.take(rows.runner.launch(rows.prompt_step()).collect())  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = rows.runner.launch(rows.prompt_step())
        running = rows.runner.launch(replace(rows.decode_step(), masks=((3, mask), (0, mask))))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert again.collect().tokens == [answer[0] for answer in rows.answers]
    assert len(running.collect().tokens) == 20


def test_a_mask_decides_what_a_row_gets():
    """
    Behind a graph, for any row of the step.
    """
    rows = Rows(make_model("GlmForCausalLM"), 5, asks=False)
    plain = rows.runner.launch(rows.prompt_step()).collect().tokens
    mask = bytearray(VOCABULARY // 8)
    mask[-1] = 1 << 7
    step = replace(rows.prompt_step(), masks=((2, bytes(mask)),))
    masked = rows.runner.launch(step).collect().tokens
    assert masked == [*plain[:2], VOCABULARY - 1, *plain[3:]]
