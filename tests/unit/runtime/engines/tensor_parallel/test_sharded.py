"""
Ranks on one CPU, over gloo.  NCCL, graphs and GPUs that wait for each other need GPUs.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runtime.contract import EXIT_ENGINE
from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import FinishReason, Loaded
from runtime.engines.paged import load_engine as opening
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.client import launch
from runtime.engines.paged.grammars import Grammars
from runtime.engines.paged.load_engine import fill, load_engine
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.engines.paged.step import Step
from runtime.engines.tensor_parallel import ranks
from runtime.engines.tensor_parallel import sharded as parallel
from runtime.engines.tensor_parallel.pipe import Pipe
from runtime.engines.tensor_parallel.sharded import open_sharded
from runtime.kernels import reference
from runtime.kernels.quantize import dequantize
from runtime.models import collectives
from runtime.models.config import DecoderConfig
from runtime.models.shard import Shard
from runtime.structured import Grammar, GrammarKind
from runtime.structured.compiler import GrammarCompiler, translate
from tests.unit.runtime.builders import make_config_document, write_model
from tests.unit.runtime.engines.paged.test_worker import Api, make_load
from tests.unit.runtime.requests import make_request

QWEN = {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False}
CASES = {
    "glm, 2 ranks": (2, {}),
    "qwen, 4 ranks that share 2 KV heads": (4, QWEN),
}
LOAD = {"max_batch_requests": 4, "page_tokens": 8, "step_tokens": 12}


def make_requests():
    rng = random.Random(1)
    prompts = [[rng.randrange(95) for _ in range(length)] for length in (5, 21, 13)]
    temperatures = (0.0, 0.0, 0.8)
    return [
        make_request(id, prompt, max_tokens=8, timeout_s=9.0, temperature=temperature, seed=id)
        for id, (prompt, temperature) in enumerate(zip(prompts, temperatures, strict=True))
    ]


def make_asking():
    """
    Return requests whose logits are processed, on every rank.
    """
    ways = [
        {"presence_penalty": 2.0, "repetition_penalty": 1.3},
        {"top_k": 5, "min_p": 0.05, "logit_bias": ((7, 3.0),)},
        {"logprobs": 3, "frequency_penalty": 1.0, "prompt_logprobs": 2},
    ]
    return [
        replace(request, params=replace(request.params, **fields))
        for request, fields in zip(make_requests(), ways, strict=True)
    ]


def make_scheduler(opened, grammars=None):
    return Scheduler(
        opened.runner,
        Capacity(LOAD["max_batch_requests"], opened.step_tokens, 0.0),
        opened.stop_token_ids,
        BlockAllocator(opened.pages, opened.page_tokens),
        random.Random(1),
        grammars,
    )


def answers(opened, make_requests=make_requests):
    """
    Return a scheduler's answers to a few requests, two greedy and one sampled.
    """
    scheduler = make_scheduler(opened)
    for request in make_requests():
        scheduler.submit(request, 0.0)
    tokens = {request.id: [] for request in make_requests()}
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        for id, token in report.tokens:
            tokens[id].append(token)
    assert all(len(generated) == 8 for generated in tokens.values())
    return tokens


@pytest.fixture(autouse=True, scope="module")
def stays():
    """
    If rank 0 is this process, its exit fails the test and does not end the process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.TPWorkers, "_leave", lambda self: None)
        yield


@pytest.fixture
def logits(monkeypatch):
    """
    Records the logits that tokens are sampled from, step by step.
    """
    recorded = []
    sample = reference.sample

    def spy(step_logits, *rest):
        recorded.append(step_logits.clone())
        return sample(step_logits, *rest)

    monkeypatch.setattr(reference, "sample", spy)
    return recorded


@pytest.fixture(scope="module", params=CASES)
def shared(request, tmp_path_factory):
    """
    An engine of several ranks, one of a single rank, and weights of the same shapes.
    """
    size, changes = CASES[request.param]
    folder = tmp_path_factory.mktemp("models")
    model, other = (write_model(folder / str(seed), seed=seed, **pad(changes)) for seed in (0, 1))
    whole = load_engine(make_load(str(model), **LOAD))
    sharded = open_sharded(make_load(str(model), gpus=size, **LOAD))
    yield SimpleNamespace(whole=whole, sharded=sharded, model=str(model), other=str(other))
    sharded.runner.close()
    assert children(os.getpid()) == []


def pad(changes):
    return {"vocab_size": 96} | changes


def children(pid):
    return [int(id) for id in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def swap(opened, model_dir):
    opened.prepare(model_dir)()


def test_ranks_give_the_answers_of_one(shared, logits):
    """
    Token for token, from logits that are equal except for the order of sums.
    """
    expected, whole_logits = answers(shared.whole), list(logits)
    logits.clear()
    assert answers(shared.sharded) == expected
    assert len(logits) == len(whole_logits) > 8
    for ours, theirs in zip(logits, whole_logits, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    fields = ("pages", "step_tokens", "context_tokens", "parameters", "stop_token_ids")
    for field in fields:
        assert getattr(shared.sharded, field) == getattr(shared.whole, field), field


def test_every_rank_processes_the_same_rows(shared):
    """
    The newest token of a row is on each rank: one that did not would go on from another.
    """
    expected = answers(shared.whole, make_asking)
    assert answers(shared.sharded, make_asking) == expected != answers(shared.whole)


def test_an_error_of_a_grammar_leaves_the_ranks_in_step(shared, monkeypatch):
    """
    Its row ends.  Its neighbours, and those who come next, get the answers of one rank.
    """
    real = GrammarCompiler.masks

    def fail(self, states):
        if any("#" in state.compiled and state.accepted for state in states):
            raise RuntimeError("lost")
        return real(self, states)

    monkeypatch.setattr(GrammarCompiler, "masks", fail)
    patterns = ["[0-9]{8}", "[#]{8}", "[a-f]{8}"]
    found = []
    for opened in (shared.whole, shared.sharded):
        path = Path(shared.model) / "tokenizer.json"
        grammars = Grammars(GrammarCompiler(path, opened.vocabulary, opened.stop_token_ids))
        scheduler = make_scheduler(opened, grammars)
        found.append([answers_to(scheduler, patterns), answers_to(scheduler, patterns[:1])])
    assert found[0] == found[1]
    ((first, failed, third), (again,)) = found[1]
    assert failed == (1, FinishReason.GRAMMAR)
    assert first == again == third == (8, FinishReason.STOP)


def answers_to(scheduler, patterns):
    """
    Return the number of tokens and the finish reason of an answer for each regex.
    """
    tokens, ended = Counter(), {}
    for request, pattern in zip(make_requests(), patterns, strict=False):
        grammar = Grammar(GrammarKind.REGEX, pattern, translate(GrammarKind.REGEX, pattern))
        scheduler.submit(replace(request, params=replace(request.params, grammar=grammar)), 0.0)
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        tokens.update(id for id, _ in report.tokens)
        ended |= {id: reason for id, reason, _ in report.ended}
    return [(tokens[id], ended[id]) for id in sorted(ended)]


def test_a_sum_that_is_left_out_would_be_noticed(shared, monkeypatch):
    """
    Negative control: rank 0 omits the sum after an MLP.
    """
    expected = answers(shared.whole)
    all_reduce, calls = collectives.dist.all_reduce, []

    def leave_one_out(x):
        calls.append(x)
        all_reduce(x if len(calls) % 2 else x.clone())

    monkeypatch.setattr(collectives.dist, "all_reduce", leave_one_out)
    assert answers(shared.sharded) != expected


def test_weights_are_swapped_on_every_rank(shared):
    """
    The answers are those of the new weights, and after a second swap those of the old ones.
    """
    old = answers(shared.whole)
    for opened in (shared.whole, shared.sharded):
        swap(opened, shared.other)
    assert answers(shared.sharded) == answers(shared.whole) != old
    for opened in (shared.whole, shared.sharded):
        swap(opened, shared.model)
    assert answers(shared.sharded) == old


def test_weights_that_one_rank_can_not_read_are_swapped_on_none(shared, monkeypatch, tmp_path):
    """
    For a failure of rank 0 or of another rank, the old weights stay in use.
    """
    old = answers(shared.sharded)

    def fail(*_):
        raise ModelError("a file", why="it is cut", fix="another")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "stage", fail)  # on rank 0
        with pytest.raises(ModelError, match="a file"):
            shared.sharded.prepare(shared.other)
    assert answers(shared.sharded) == old

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((Path(shared.model) / "config.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(opening, "stage", lambda *_: None)  # rank 0 reads nothing
        with pytest.raises(ModelError, match="broken"):
            shared.sharded.prepare(str(broken))
    assert answers(shared.sharded) == old
    swap(shared.sharded, shared.model)  # no answer is left over
    assert answers(shared.sharded) == old


@pytest.mark.parametrize(
    ("gpus", "weights", "changes", "words"),
    [
        (3, "full", {}, "4 attention heads"),
        (2, "int4", {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}, "4 bits"),
    ],
)
def test_an_uneven_division_is_refused_before_a_process_starts(
    tmp_path, monkeypatch, gpus, weights, changes, words
):
    """
    Also for 4-bit groups that only the unsharded model would have.
    """
    monkeypatch.setattr(parallel, "TPWorkers", None)
    model = write_model(tmp_path / "model", **pad(changes))
    load_engine(make_load(str(model), weights=weights, **LOAD))  # negative control
    with pytest.raises(ModelError, match=words):
        open_sharded(make_load(str(model), weights=weights, gpus=gpus, **LOAD))


def test_each_rank_quantises_its_own_shard(tmp_path):
    """
    No value differs from the file's by more than half of its own rank's scale.
    """
    model = write_model(tmp_path / "model", **pad({}))
    config = DecoderConfig.from_json(make_config_document(**pad({})), "config.json")
    load = make_load(str(model), weights="int8", gpus=2)
    for rank in range(2):
        exact = fill(make_load(str(model)), config, "cpu", Shard(rank, 2))
        rounded = fill(load, config, "cpu", Shard(rank, 2))
        for name in ("qkv", "out", "gate_up", "down"):
            wanted = getattr(exact.layers[1], name)
            quantized = getattr(rounded.layers[1], name)
            apart = (dequantize(quantized, torch.float32) - wanted).abs()
            assert quantized.shape == wanted.shape
            assert (apart <= quantized.scale[:, None] / 2 * 1.001).all()
            assert torch.allclose(quantized.scale, wanted.abs().amax(dim=1) / 127)


class Stuck:
    """
    A GPU that waits for another rank.
    """

    done = SimpleNamespace(query=lambda: False)

    def launch(self, step):
        return self


def test_a_lost_rank_ends_a_wait_for_the_gpu(monkeypatch):
    """
    The wait raises the rank's error, and so does the next step; then the process ends.
    """
    ours, theirs = socket.socketpair()
    gone = subprocess.Popen([sys.executable, "-Sc", "raise SystemExit(3)"])
    monkeypatch.setattr(ranks, "_start", lambda rank, store: (gone, Pipe(ours)))
    ended = threading.Event()
    monkeypatch.setattr(ranks.TPWorkers, "_leave", lambda self: ended.set())
    workers = ranks.TPWorkers(1)
    runner = parallel.ShardedRunner(Stuck(), workers)
    running = runner.launch(Step((), (), ()))
    Pipe(theirs).send(parallel.encode("died", "ValueError: no luck"))
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ranks.RankLost, match="rank 1: ValueError: no luck"):
        running.collect()
    with pytest.raises(ranks.RankLost, match="no luck"):
        runner.launch(Step((), (), ()))
    assert ended.wait(60)
    workers.close()


@contextlib.contextmanager
def engine(folder, gpus):
    """
    An engine process that computes a long answer.
    """
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 4096}
    model = write_model(folder, **pad(sizes))
    child = launch(threads=1)
    child.socket.settimeout(60)
    try:
        api = Api(child.socket)
        api.says(make_load(str(model), gpus=gpus))
        assert isinstance(api.hears_news(), Loaded)
        api.says(make_request(1, [5], max_tokens=4000, timeout_s=600.0))
        assert api.hears_news().tokens
        yield child.process, api
    finally:
        child.process.kill()
        child.process.wait()
        child.socket.close()


def wait_until_gone(*pids):
    until_s = time.monotonic() + 60
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < until_s, left
        time.sleep(0.01)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_engine_that_loses_a_rank_exits(tmp_path, monkeypatch):
    """
    Waiting requests get an error that names the rank; the unit sees the engine's exit code, and no
    process remains.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with engine(tmp_path / "model", gpus=3) as (process, api):
        first, second = children(process.pid)
        os.kill(first, signal.SIGKILL)
        while not (ended := api.hears_news().ended):
            pass
        assert process.wait(60) == EXIT_ENGINE
        wait_until_gone(first, second)
    ((_, ending, detail),) = ended
    assert ending == "error"
    assert "rank 1: killed by signal 9" in detail
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]  # nor what they met by


def test_no_rank_outlives_the_first(tmp_path, monkeypatch):
    """
    However rank 0 ends, and also in the middle of a step.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with engine(tmp_path / "model", gpus=2) as (process, _):
        (worker_pid,) = children(process.pid)
        process.kill()
        wait_until_gone(worker_pid)
