import contextlib
import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import (
    Cancel,
    Embed,
    EngineReport,
    FinishReason,
    Load,
    Loaded,
    LoadFailed,
    Swap,
    decode_from_engine,
    encode,
)
from runtime.engines.paged.step import Embedding, LoadedModel
from runtime.engines.paged.worker import Engine, EngineSocket
from tests.unit.runtime.fakes import FakeRunner
from tests.unit.runtime.requests import make_request


class Models:
    """
    Opens fake models by directory name: /bad is not a model, /ugly raises, /late fails at the
    commit.
    A model adds a number to the last token: the first one 1, a swapped one 10.

    Attributes:
        may_read: While cleared, a swap waits before it reads.
        steps: None, or a semaphore with one permit for each token that may be computed.
    """

    def __init__(self):
        self.runner = None
        self.may_read = threading.Event()
        self.may_read.set()
        self.steps = None

    def __call__(self, load):
        self._check(load.model_dir)
        self.runner = FakeRunner(load.options.max_batch_requests, pages=100, page_tokens=2)
        self._serve(adds=1)
        return LoadedModel(
            self.runner,
            pages=100,
            page_tokens=2,
            step_tokens=32,
            context_tokens=50,
            vocabulary=9,
            parameters=1,
            stop_token_ids=frozenset(),
            prepare=self._prepare,
        )

    def _check(self, model_dir):
        if model_dir.endswith("/bad"):
            raise ModelError("not a model", why="so it is", fix="another")
        if model_dir.endswith("/ugly"):
            raise RuntimeError("no luck")

    def _prepare(self, model_dir):
        assert self.may_read.wait(60)
        self._check(model_dir)

        def finish():
            if model_dir.endswith("/late"):
                raise RuntimeError("no luck")
            self._serve(adds=10)

        return finish

    def _serve(self, adds):
        def rule(tokens):
            assert self.steps is None or self.steps.acquire(timeout=60)
            return tokens[-1] + adds

        self.runner.rule = rule

    def have_read(self):
        """
        Wait until no weights are being read.
        """
        self.may_read.set()
        for thread in threading.enumerate():
            if thread.name == "swap":
                thread.join(60)


class Api:
    """
    The API's end of the socket, driven by the test.
    """

    def __init__(self, sock):
        self._lines = sock.makefile("rb")
        self._socket = sock

    def says(self, *messages):
        self._socket.sendall(b"".join(encode(message) for message in messages))

    def hears(self):
        return decode_from_engine(self._lines.readline())

    def hears_news(self):
        while isinstance(message := self.hears(), EngineReport) and message.is_beat:
            pass
        return message

    def hears_answer(self, id):
        """
        Return the tokens of a request, from any number of reports.
        """
        tokens = []
        while True:
            report = self.hears_news()
            tokens += [token for of, token in report.tokens if of == id]
            if any(of == id for of, _, _ in report.ended):
                return tokens


def make_load(name="/good", beat_s=30.0, stop_token_ids=(), **changes):
    options = {"max_batch_requests": 2, "max_wait_s": 0.0}
    return Load(name, beat_s, EngineOptions(**options | changes), stop_token_ids)


@contextlib.contextmanager
def engine():
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    models = Models()
    thread = threading.Thread(target=Engine(EngineSocket(theirs), models).run)
    thread.start()
    with ours, theirs:
        try:
            yield Api(ours), models
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join(60)
    assert not thread.is_alive()


def test_an_engine_loads_computes_and_exits_with_its_socket():
    """
    Loaded, a report for each step, and an exit when the socket closes.
    """
    with engine() as (api, _):
        api.says(make_load())
        loaded = api.hears_news()
        assert (loaded.context_tokens, loaded.vocabulary, loaded.parameters) == (50, 9, 1)
        api.says(make_request(1, [5], max_tokens=2, timeout_s=9.0))
        assert api.hears_news().tokens == [[1, 6]]
        last = api.hears_news()
        assert last.tokens == [[1, 7]]
        assert last.ended == [[1, FinishReason.LENGTH, ""]]


def test_the_tokenizer_may_name_the_end_token_alone():
    """
    The model's config has none; without the tokenizer's, the answer goes on.
    """
    ended = {}
    for stop_token_ids in ([7], []):
        with engine() as (api, _):
            api.says(make_load(stop_token_ids=stop_token_ids))
            assert isinstance(api.hears_news(), Loaded)
            api.says(make_request(1, [5], max_tokens=3, timeout_s=9.0))
            while not (report := api.hears_news()).ended:
                pass
            ended[tuple(stop_token_ids)] = report.ended[0][1]
    assert ended == {(7,): FinishReason.STOP, (): FinishReason.LENGTH}


def test_an_idle_engine_sends_heartbeats():
    """
    Without requests it sends empty reports, repeatedly.
    """
    with engine() as (api, _):
        api.says(make_load(beat_s=0.001))
        assert isinstance(api.hears(), Loaded)
        assert all(api.hears().is_beat for _ in range(5))


def test_a_load_replaces_the_model_once_nothing_runs():
    """
    It is refused while requests run; the next request uses the new model.
    """
    with engine() as (api, models):
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        first = models.runner
        models.steps = threading.Semaphore(0)
        # In one piece, so that the engine reads both before it computes.
        api.says(make_request(1, [5], max_tokens=40, timeout_s=9.0), make_load())
        refused = api.hears_news()
        assert isinstance(refused, LoadFailed)
        assert "running" in refused.why
        api.says(Cancel(1), make_load())  # with a step of it in flight
        models.steps.release(2)
        while isinstance(message := api.hears_news(), EngineReport):
            pass
        assert isinstance(message, Loaded)
        assert models.runner is not first
        models.steps = None
        api.says(make_request(2, [7], max_tokens=1, timeout_s=9.0))
        assert api.hears_news().tokens == [[2, 8]]


def test_a_failed_load_keeps_the_old_model():
    """
    The error says whose fault it is, and the old model still answers.
    """
    with engine() as (api, models):
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        first = models.runner
        api.says(make_load("/bad"))
        assert api.hears_news() == LoadFailed("not a model", "so it is", "another", is_model=True)
        api.says(make_load("/ugly"))
        failed = api.hears_news()
        assert (failed.is_model, failed.why) == (False, "RuntimeError: no luck")
        api.says(make_request(1, [5], max_tokens=1, timeout_s=9.0))
        assert api.hears_news().tokens == [[1, 6]]
        assert models.runner is first


def test_weights_are_swapped_without_losing_a_request():
    """
    The old weights serve during the read and until running requests end; queued requests get the
    new ones, and no pages of the old ones.
    """
    with engine() as (api, models):
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        models.may_read.clear()
        api.says(Swap("/next"), make_request(1, [5, 5, 5], max_tokens=1, timeout_s=9.0))
        assert api.hears_answer(1) == [6]  # while the new ones are read

        models.steps = threading.Semaphore(1)
        api.says(make_request(2, [5, 5, 5], max_tokens=4, timeout_s=9.0))
        first = api.hears_news()
        assert (first.tokens, first.cached_tokens) == ([[2, 6]], 2)
        models.have_read()
        models.steps.release()
        assert api.hears_news().tokens == [[2, 7]]
        api.says(make_request(3, [5, 5, 5], max_tokens=2, timeout_s=9.0))
        models.steps.release()
        assert api.hears_news().tokens == [[2, 8]]
        models.steps.release(3)
        last = api.hears_news()
        assert (last.tokens, last.waiting) == ([[2, 9]], 1)

        assert isinstance(api.hears_news(), Loaded)
        first = api.hears_news()
        assert (first.tokens, first.cached_tokens) == ([[3, 15]], 0)
        assert api.hears_news().tokens == [[3, 25]]


def test_a_failed_swap_keeps_the_old_weights():
    """
    For any failure, queued requests are answered, and another swap is possible.
    """
    with engine() as (api, _):
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        for id, name in enumerate(("/bad", "/ugly")):
            api.says(Swap(name))
            failed = api.hears_news()
            assert isinstance(failed, LoadFailed)
            assert failed.is_model == (name == "/bad")
            api.says(make_request(id, [5], max_tokens=2, timeout_s=9.0))
            assert api.hears_answer(id) == [6, 7]
        api.says(Swap("/next"))
        assert isinstance(api.hears_news(), Loaded)
        api.says(make_request(9, [5], max_tokens=2, timeout_s=9.0))
        assert api.hears_answer(9) == [15, 25]


def test_a_swap_that_fails_half_way_ends_the_engine():
    """
    A mixture of two models never serves: the process exits, and systemd restarts it.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(make_load()) + encode(Swap("/late")))
        with pytest.raises(RuntimeError, match="no luck"):
            Engine(EngineSocket(theirs), Models()).run()


def test_a_second_model_is_refused_on_a_gpu():
    """
    The first one has its memory: swap its weights, or start another process.
    """
    with engine() as (api, _):
        api.says(make_load(device="cuda"), make_load("/next", device="cuda"))
        assert isinstance(api.hears_news(), Loaded)
        refused = api.hears_news()
        assert isinstance(refused, LoadFailed)
        assert "swap its weights" in refused.fix


def test_one_model_is_read_at_a_time():
    """
    A load or swap during another is refused at once, and so is a swap without a model.
    """
    with engine() as (api, models):
        api.says(Swap("/next"))
        assert "no model" in api.hears_news().why
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        models.may_read.clear()
        api.says(Swap("/next"), Swap("/other"), make_load())
        assert [api.hears_news().why for _ in range(2)] == ["a swap is in progress"] * 2
        models.may_read.set()
        assert isinstance(api.hears_news(), Loaded)


def test_max_batch_tokens_limits_the_batch():
    """
    The second request waits until the first ends.
    """
    with engine() as (api, _):
        api.says(make_load(max_batch_tokens=10))
        assert isinstance(api.hears_news(), Loaded)
        api.says(*(make_request(id, [5], max_tokens=5, timeout_s=9.0) for id in (1, 2)))
        batches = [api.hears_news().batch for _ in range(10)]
        assert batches == [1] * 10


def test_texts_to_embed_hold_answers_no_longer_than_a_step():
    """
    A batch is as long as a step while an answer is computed, and as long as it may be alone.
    """
    batches = []

    def embed(texts):
        batches.append(len(texts))
        return [b"" for _ in texts]

    def opened(load):
        return replace(Models()(load), embedding=Embedding(embed, 1, (), 320))

    engine = Engine(SimpleNamespace(send=lambda report: None), opened)
    texts = [Embed(id, [1] * 8, 10.0) for id in range(2, 42)]
    load = Load("/good", 1.0, EngineOptions(max_wait_s=0.0))
    engine._take_in([load, make_request(1, [1, 2], 2, 10.0), *texts])
    while len(engine._embedder):
        engine._turn(engine._scheduler)
    assert batches[0] == 4  # 32 tokens, as a step has
    assert max(batches) == 32
