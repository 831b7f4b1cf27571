import contextlib
import socket
import threading

from runtime.engine.protocol import (
    Cancel,
    Ending,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Submit,
    decode_from_engine,
    encode,
)
from runtime.engine.worker import Engine, Line, Opened
from runtime.errors import ModelError
from tests.unit.runtime.fakes import FakeRunner


class Models:
    """
    Opens directories by their name: one that ends in /bad is none, /ugly raises.
    """

    def __init__(self):
        self.runner = None

    def __call__(self, load):
        if load.model_dir.endswith("/bad"):
            raise ModelError("not a model", why="so it is", fix="another")
        if load.model_dir.endswith("/ugly"):
            raise RuntimeError("no luck")
        self.runner = FakeRunner(load.max_batch_requests)
        return Opened(self.runner, context_tokens=50, vocabulary=9, parameters=1, ends=frozenset())


class Api:
    """
    The API's end of the socket, played by the test.
    """

    def __init__(self, sock):
        self._lines = sock.makefile("rb")
        self._socket = sock

    def says(self, *messages):
        self._socket.sendall(b"".join(encode(message) for message in messages))

    def hears(self):
        return decode_from_engine(self._lines.readline())

    def hears_news(self):
        while isinstance(message := self.hears(), Report) and message.is_beat:
            pass
        return message


def make_load(name="/good", beat_s=30.0, **changes):
    fields = {
        "model_dir": name,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "max_batch_requests": 2,
        "max_batch_tokens": None,
        "max_wait_s": 0.0,
        "beat_s": beat_s,
    }
    return Load(**fields | changes)


@contextlib.contextmanager
def engine():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    models = Models()
    thread = threading.Thread(target=Engine(Line(theirs), models).run)
    thread.start()
    with ours, theirs:
        try:
            yield Api(ours), models
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert not thread.is_alive()


def test_an_engine_loads_computes_and_leaves_when_hung_up_on():
    """
    Loaded, a report for each step, and its end with the socket's.
    """
    with engine() as (api, _):
        api.says(make_load())
        loaded = api.hears_news()
        assert (loaded.context_tokens, loaded.vocabulary, loaded.parameters) == (50, 9, 1)
        api.says(Submit(1, [5], max_tokens=2, timeout_s=9.0))
        assert api.hears_news().tokens == [[1, 6]]
        last = api.hears_news()
        assert last.tokens == [[1, 7]]
        assert last.ended == [[1, Ending.LENGTH, ""]]


def test_an_idle_engine_beats_by_itself():
    """
    Without requests a report with nothing in it comes, again and again.
    """
    with engine() as (api, _):
        api.says(make_load(beat_s=0.001))
        assert isinstance(api.hears(), Loaded)
        assert all(api.hears().is_beat for _ in range(5))


def test_a_model_takes_the_place_of_another_once_nothing_runs():
    """
    Refused while requests run; then the next request is the new model's.
    """
    with engine() as (api, models):
        api.says(make_load())
        assert isinstance(api.hears_news(), Loaded)
        first = models.runner
        # In one piece, so that the engine reads both before it computes.
        api.says(Submit(1, [5], max_tokens=40, timeout_s=9.0), make_load())
        refused = api.hears_news()
        assert isinstance(refused, LoadFailed)
        assert "running" in refused.why
        api.says(Cancel(1), make_load())
        while isinstance(message := api.hears_news(), Report):
            pass
        assert isinstance(message, Loaded)
        assert models.runner is not first
        api.says(Submit(2, [7], max_tokens=1, timeout_s=9.0))
        assert api.hears_news().tokens == [[2, 8]]


def test_a_model_that_can_not_be_loaded_leaves_the_one_before_it():
    """
    Whose fault it is is said, and the old model still answers.
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
        api.says(Submit(1, [5], max_tokens=1, timeout_s=9.0))
        assert api.hears_news().tokens == [[1, 6]]
        assert models.runner is first


def test_the_token_budget_is_the_configs_and_never_more_than_the_context():
    """
    max_batch_tokens holds the second request back until the first is gone.
    """
    with engine() as (api, _):
        api.says(make_load(max_batch_tokens=10))
        assert isinstance(api.hears_news(), Loaded)
        api.says(*(Submit(id, [5], max_tokens=5, timeout_s=9.0) for id in (1, 2)))
        batches = [api.hears_news().batch for _ in range(10)]
        assert batches == [1] * 10
