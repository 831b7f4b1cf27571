"""
The engine's answers, through the real scheduler and its pages, on the CPU in fp32.
"""

import random
from dataclasses import replace
from itertools import takewhile

import pytest
import torch

from runtime.engines.base.protocol import FinishReason
from runtime.engines.paged import runner as runner_module
from runtime.engines.paged.load_engine import fill
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import Chunk, Decode, Step, StepOutput
from runtime.engines.paged.transfers import whole
from runtime.models.loader import load_model, read_config
from tests.unit.runtime.builders import make_model, write_model
from tests.unit.runtime.engines.paged.playing import (
    KV_DTYPES,
    Dirty,
    Small,
    answer,
    make_engine,
    make_load,
    play,
    spoil,
)
from tests.unit.runtime.kernels.truth import distance
from tests.unit.runtime.models.test_decoder import make_reference
from tests.unit.runtime.requests import make_join, make_request

NAN_TOKEN = 299
CONTEXT = 128


@pytest.fixture(scope="module")
def model():
    model = make_model()
    model.embedding[NAN_TOKEN] = float("nan")
    return model


def make_prompts(rng, count, *, alike=True, vocabulary=NAN_TOKEN):
    """
    Return prompts with many, or no, common prefixes.
    """

    def draw(least, most):
        return [rng.randrange(1, vocabulary) for _ in range(rng.randint(least, most))]

    stems = [draw(8, 40) for _ in range(2)]
    prompts = [rng.choice([[], *stems]) + draw(1, 20) for _ in range(count)]
    return prompts if alike else [[id, *draw(0, 40)] for id in range(count)]


def make_requests(rng, count, **options):
    """
    Return requests, alternating greedy and sampled.
    """
    prompts = make_prompts(rng, count, **options)
    ways = [(0.0, 1.0), (0.8, 1.0), (0.0, 1.0), (0.8, 0.7)]
    return [
        make_request(id, prompt, rng.randint(1, 15), 9.0, *ways[id % 4], seed=id)
        for id, prompt in enumerate(prompts)
    ]


def make_arrivals(rng, requests):
    return [(rng.randrange(12), request) for request in requests]


def make_random_engine(rng, model, page_sizes=(1, 2, 4, 8, 16, 64), **options):
    """
    Return an engine of a random shape that fits the longest row.
    """
    max_requests, page_tokens = rng.randint(2, 7), rng.choice(page_sizes)
    return make_engine(
        model,
        max_requests=max_requests,
        page_tokens=page_tokens,
        pages=1 + rng.randint(1, 3) * -(-CONTEXT // page_tokens),
        step_tokens=max_requests + rng.choice([1, 3, 8, 32, 256]),
        **options,
    )


@pytest.fixture(scope="module", params=["glm", "glm4", "llama-llama3", "qwen3"])
def pair(request, tmp_path_factory):
    """
    A model, prompts, and the reference's greedy answers without their stop tokens.
    """
    folder = tmp_path_factory.mktemp(request.param)
    reference = make_reference(request.param, folder)
    ours, config = load_model(folder, device="cpu", precision="fp32")
    assert config.stop_token_ids == {0}
    rng = random.Random(4)
    asked = [(prompt, rng.randint(1, 14)) for prompt in make_prompts(rng, 10, vocabulary=120)]
    return ours, asked, [answer_of(reference, *each) for each in asked]


@torch.inference_mode()
def answer_of(reference, prompt, length):
    whole = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=length,
        do_sample=False,
    )[0].tolist()
    generated = whole[len(prompt) :]
    return generated[: generated.index(0)] if 0 in generated else generated


@pytest.mark.parametrize("seed", range(5))
def test_greedy_answers_match_the_reference(pair, seed):
    """
    Token for token, for any arrivals and any sizes of batches, steps and pages.
    """
    ours, asked, wanted = pair
    rng = random.Random(seed)
    requests = [make_request(id, prompt, length, 9.0) for id, (prompt, length) in enumerate(asked)]
    scheduler, _ = make_random_engine(rng, ours, stop_token_ids=ours.config.stop_token_ids)

    generated, _ = play(scheduler, make_arrivals(rng, requests))

    assert generated == dict(enumerate(wanted))


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_does_not_depend_on_its_neighbours(model, seed, alike, kv):
    """
    Other requests come and go, sampled and greedy, with and without shared pages: the tokens are
    the same as alone.
    """
    rng = random.Random(seed)
    requests = make_requests(rng, 12, alike=alike)
    scheduler, _ = make_random_engine(rng, model, page_sizes=(1, 4, 8), kv=kv)

    together, _ = play(scheduler, make_arrivals(rng, requests))

    assert together == {request.id: answer(model, request, kv=kv) for request in requests}
    assert (scheduler.allocator.hit_tokens > 0) == alike


def test_reused_pages_do_not_change_an_answer(model):
    """
    A repeated prompt, and one that continues an answer.
    """
    scheduler, _ = make_engine(model, page_tokens=4)
    pool = scheduler.allocator
    first = make_request(1, list(range(1, 18)), 10, 9.0)
    wanted = answer(model, first)
    assert play(scheduler, [(0, first)])[0][1] == wanted
    assert pool.hit_tokens == 0

    assert play(scheduler, [(0, first)])[0][1] == wanted
    assert pool.hit_tokens == 16  # 17 tokens, of which the last must be computed

    # 17 and 10 tokens, of which the last was never computed.
    more = make_request(2, [*first.tokens, *wanted, 7, 8], 10, 9.0, temperature=0.8, seed=3)
    assert play(scheduler, [(0, more)])[0][2] == answer(model, more)
    assert pool.hit_tokens == 16 + 24


@pytest.mark.parametrize("kv", KV_DTYPES)
def test_a_row_of_nan_fails_alone_and_leaves_no_trace(model, kv):
    """
    Neighbours, rows with the same prefix and later owners of its pages get correct answers.
    """
    rng = random.Random(7)
    good = make_requests(rng, 8)
    stem = [5] * 21
    good += [make_request(8 + id, [*stem, id], 10, 9.0) for id in range(4)]
    bad = [make_request(20 + id, [*stem, NAN_TOKEN, *[6] * 9], 10, 9.0) for id in range(3)]
    bad += [
        make_request(23, [NAN_TOKEN], 10, 9.0),
        make_request(24, [*good[0].tokens, NAN_TOKEN], 10, 9.0),
    ]
    rng.shuffle(good)
    arrivals = [(2 * turn, request) for turn, request in enumerate(good)]
    arrivals += [(5 * turn, request) for turn, request in enumerate(bad)]
    # 2 of the longest rows: whatever is given back is soon another's.
    scheduler, _ = make_engine(model, max_requests=5, step_tokens=16, pages=32, kv=kv)

    tokens, ended = play(scheduler, arrivals)

    nonfinite = {id for id, ending in ended.items() if ending == FinishReason.NONFINITE}
    assert nonfinite == {request.id for request in bad}
    assert scheduler.allocator.hit_tokens > 0
    assert scheduler.allocator.evictions > 0
    for request in good:
        assert tokens[request.id] == answer(model, request, kv=kv), request


@pytest.mark.parametrize("kv", KV_DTYPES)
def test_nan_in_a_visible_page_would_be_noticed(model, kv):
    """
    Negative control: one NaN in a cell that a row reads, and the row fails.
    """
    requests = [make_request(id, [id, 2, 3, 4, 5], 10, 9.0) for id in (1, 2)]
    scheduler, runner = make_engine(model, page_tokens=4, kv=kv)
    turns = iter(range(100))

    def before():
        if next(turns) == 3:
            (page,) = {int(page) for page in runner.cache.table[1, :1]}
            spoil(runner.cache, [page], offsets=2)

    tokens, ended = play(scheduler, [(0, request) for request in requests], before)

    assert ended == {1: FinishReason.LENGTH, 2: FinishReason.NONFINITE}
    assert tokens[1] == answer(model, requests[0], kv=kv)
    assert 0 < len(tokens[2]) < 10


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_does_not_read_beyond_its_end(model, seed, kv):
    """
    All pages, that of padding included, hold NaN when a row gets them.
    """
    rng = random.Random(seed)
    requests = make_requests(rng, 10)
    scheduler, _ = make_random_engine(rng, model, kv=kv, wrap=Dirty)

    tokens, _ = play(scheduler, make_arrivals(rng, requests))

    assert tokens == {request.id: answer(model, request, kv=kv) for request in requests}


def test_the_engine_works_after_a_failed_step(model, monkeypatch):
    """
    Its requests fail, later ones are answered, and no earlier page is reused.
    """
    request = make_request(1, list(range(1, 20)), 5, 9.0)
    scheduler, _ = make_engine(model)
    for other in (0, 2):
        scheduler.submit(replace(request, id=other), now_s=0.0)
    scheduler.turn(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "angles", lambda *_: 1 / 0)
        report = scheduler.turn(0.0)
    endings = {id: (ending, why) for id, ending, why in report.ended}
    assert endings.keys() == {0, 2}
    assert all(ending == FinishReason.ERROR for ending, _ in endings.values())
    assert "ZeroDivisionError" in endings[0][1]

    hits = scheduler.allocator.hit_tokens
    assert play(scheduler, [(0, request)])[0][1] == answer(model, request)
    assert scheduler.allocator.hit_tokens == hits


def test_a_seed_fixes_a_sampled_answer(model):
    """
    Another seed gives another answer; without a seed it varies.
    """
    scheduler, _ = make_engine(model)

    def draw(seed):
        request = make_request(1, [1, 2, 3], 20, 9.0, temperature=2.0, seed=seed)
        return play(scheduler, [(0, request)])[0][1]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_each_row_has_its_own_temperature_and_top_p(model):
    """
    In one batch: greedy, top_p so small that it is greedy, and neither.
    """
    request = make_request(0, [1, 2, 3], 20, 9.0, temperature=0.0, seed=1)
    narrow = make_request(1, [1, 2, 3], 20, 9.0, temperature=2.0, top_p=1e-6, seed=1)
    wide = make_request(2, [1, 2, 3], 20, 9.0, temperature=2.0, seed=1)
    scheduler, _ = make_engine(model)

    tokens, _ = play(scheduler, [(0, request), (0, narrow), (0, wide)])

    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_a_seed_fixes_an_answer_also_when_steps_are_split(model, most):
    """
    A step that ran out of memory after its writes is recomputed in parts, with the same result.
    """
    rng = random.Random(most)
    requests = make_requests(rng, 8)
    small = []

    def wrap(runner):
        small.append(Small(runner, model, most))
        return small[0]

    scheduler, _ = make_engine(model, max_requests=4, step_tokens=32, wrap=wrap)
    tokens, _ = play(scheduler, make_arrivals(rng, requests))

    assert small[0].refused > 0
    assert scheduler.oom_splits >= small[0].refused
    assert tokens == {request.id: answer(model, request) for request in requests}


def test_only_the_last_chunk_of_a_prompt_samples(model):
    """
    The output has a token for each decode and each last chunk, in the step's order.
    """
    _, runner = make_engine(model, max_requests=3, page_tokens=4)
    joins = tuple(make_join(slot, [slot + 1], 0.0, 1.0, seed=0) for slot in range(3))
    chunks = [Chunk(0, 0, [5, 6], is_last=False), Chunk(1, 0, [7], is_last=True)]

    first = runner.launch(Step(joins[:2], (), (chunks[0],))).collect()
    assert first == StepOutput([], [])
    second = runner.launch(Step((), (), (chunks[1],))).collect()
    last = Chunk(0, 2, [8], is_last=True), Chunk(2, 0, [9], is_last=False)
    third = runner.launch(Step(joins[2:], (Decode(1, 1),), last)).collect()

    alone = [answer(model, make_request(0, prompt, 2, 9.0)) for prompt in ([7], [5, 6, 8])]
    assert [*second.tokens, third.tokens[0]] == alone[0]
    assert third.tokens[1] == alone[1][0]
    assert third.is_finite == [True, True]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """
    Models by the bits of their weights, with structure like that of trained ones.
    """
    shape = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "vocab_size": 300}
    folder = write_model(tmp_path_factory.mktemp("model"), std=0.05, **shape)
    config = read_config(folder)
    loads = {weights: make_load(folder, weights=weights) for weights in ("full", "int8", "int4")}
    return {weights: fill(load, config, "cpu") for weights, load in loads.items()}


def compute(model, requests, kv="same"):
    """
    Return the logits after all prompts, and the answers.
    """
    scheduler, _ = make_engine(model, max_requests=len(requests), step_tokens=4096, kv=kv)
    recorded = []
    with model.register_forward_hook(lambda model, args, logits: recorded.append(logits)):
        tokens, _ = play(scheduler, [(0, request) for request in requests])
    return recorded[0], tokens


@pytest.mark.parametrize(
    ("weights", "kv", "error", "same"),
    [
        ("full", "int8", 0.008, 0.90),
        ("full", "fp8", 0.04, 0.70),
        ("int8", "same", 0.018, 0.80),
        ("int4", "same", 0.33, 0.20),
        ("int8", "fp8", 0.045, 0.65),
    ],
)
def test_quantisation_moves_the_logits_by_its_rounding_error(quantised, weights, kv, error, same):
    """
    By 0.5 to 1.5 times *error*, relative; at least a share *same* of the tokens stays equal, up to
    the first difference of each answer.

    Measured, and as rounding predicts: 4 bits move a normal weight by a ninth of its size, and each
    of the eight matrices on the way moves the answer as much; the errors add in squares.
    """
    rng = random.Random(1)
    requests = [
        make_request(id, p, 5, 9.0) for id, p in enumerate(make_prompts(rng, 40, alike=False))
    ]

    wanted, answers = compute(quantised["full"], requests)
    actual, others = compute(quantised[weights], requests, kv)

    assert 0.5 * error < distance(actual, wanted) < 1.5 * error
    agreed = sum(count_alike(answers[id], others[id]) for id in answers)
    assert agreed >= same * sum(len(tokens) for tokens in answers.values())


def count_alike(one, other):
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True)))


@pytest.mark.parametrize("tokens", range(1, 10))
def test_kernel_inputs_are_aligned_for_any_length(monkeypatch, tokens):
    """
    Triton recompiles for unaligned pointers, which takes a second in the middle of a step.
    """
    recorded = []

    class Watched(runner_module.PagedAttend):
        def __init__(self, cache, slots, positions, *rest, **options):
            recorded.extend((slots, positions))
            super().__init__(cache, slots, positions, *rest, **options)

    monkeypatch.setattr(runner_module, "PagedAttend", Watched)
    runner = PagedRunner(make_model(), slots=2, pages=9, page_tokens=16, row_pages=4)
    join = make_join(0, (1, 2), 0.0, 1.0, 0)
    runner.launch(Step((join,), (), (Chunk(0, 0, [7] * tokens, True),))).collect()

    assert [len(part) for part in recorded] == [tokens, tokens]
    assert all(part.data_ptr() % 16 == 0 for part in recorded)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 30])
def test_the_inputs_of_a_graph_are_aligned_and_hold_the_step(size):
    """
    Tokens, slots, positions, rows and targets, each followed by its padding.
    """
    nobody = 5
    flat = runner_module._flatten(
        Step((), (Decode(3, 20),), (Chunk(1, 4, [8] * (size - 1), True),) if size > 1 else ())
    )
    picked = min(size, nobody)
    numbers = [whole(count) for count in (size, size, size, picked, picked)]
    graph = runner_module._Graph(
        size, picked, torch.zeros(sum(numbers), dtype=torch.int32), torch.empty(0), None
    )
    graph.inputs.copy_(torch.tensor(graph.pad(flat, nobody)))

    tokens, slots, positions, rows, targets = graph.views()

    assert all(part.data_ptr() % 16 == 0 for part in graph.views())
    assert tokens.tolist() == [-1] + [8] * (size - 1)
    assert slots.tolist() == [3] + [1] * (size - 1)
    assert positions.tolist() == [20, *range(4, 3 + size)]
    sampled = [3] if size == 1 else [3, 1]
    assert targets.tolist() == (sampled + [nobody] * picked)[:picked]
    assert rows.tolist() == ([0, size - 1] + [0] * picked)[:picked]


def test_the_longest_row_is_computed_first_and_the_output_keeps_its_order():
    """
    The output has the order of the step's decodes.
    """
    decodes = tuple(Decode(slot, at) for slot, at in ((4, 20), (2, 50), (7, 9), (1, 30)))
    flat = runner_module._flatten(Step((), decodes, (Chunk(3, 0, [8, 8], True),)))

    assert flat.positions[:4] == [50, 30, 20, 9]
    assert [flat.slots[row] for row in flat.rows] == flat.targets == [4, 2, 7, 1, 3]
