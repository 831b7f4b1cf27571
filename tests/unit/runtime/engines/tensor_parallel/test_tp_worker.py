import contextlib
import socket
import threading
from types import SimpleNamespace

from runtime.contract.errors import ModelError
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.step import Chunk, Decode, Step
from runtime.engines.tensor_parallel.pipe import Pipe, encode, encode_step
from runtime.engines.tensor_parallel.tp_worker import AHEAD_STEPS, TPWorker
from tests.unit.runtime.requests import make_join

STEP = Step(
    (make_join(1, range(4, 6), 0.5, 0.9, 2**63 - 1),),
    (Decode(0, 7),),
    (Chunk(1, 0, (5, 6, 7), is_last=True),),
)


class Device:
    """
    Writes down what it is asked for; a directory that ends in /bad is none.
    """

    def __init__(self):
        self.seen = []

    def launch(self, step):
        self.seen.append(step)
        return SimpleNamespace(collect=lambda: self.seen.append("collect"))

    def prepare(self, model_dir):
        if model_dir.endswith("/bad"):
            raise ModelError("not a model", why="so it is", fix="another")
        if model_dir.endswith("/ugly"):
            raise RuntimeError("no luck")
        return lambda: self.seen.append(model_dir)


@contextlib.contextmanager
def follower():
    """
    Yield a device, and rank 0's end of the pipe; then hang up.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    device = Device()
    opened = SimpleNamespace(runner=device, prepare=device.prepare)
    thread = threading.Thread(target=TPWorker(Pipe(theirs), opened).run)
    thread.start()
    pipe = Pipe(ours)
    try:
        yield device, pipe
    finally:
        pipe.close()
        thread.join(10)
    assert not thread.is_alive()


def test_a_follower_launches_what_it_is_told_and_not_too_far_ahead():
    """
    The same steps in the same order; the oldest is waited for once there are too many.
    """
    with follower() as (device, pipe):
        for _ in range(AHEAD_STEPS + 2):
            pipe.send(encode_step(STEP))
        pipe.send(encode("prepare", "/bad"))
        pipe.receive()  # so it has done all before
    steps = [step for step in device.seen if step != "collect"]
    (join,) = steps[0].joins
    assert (join.slot, list(join.pages)) == (1, [4, 5])
    assert join.params == SamplingParams(1, 0.5, 0.9, 2**63 - 1)
    assert steps[0].decodes == STEP.decodes
    assert [(c.slot, c.start, list(c.tokens), c.is_last) for c in steps[0].chunks] == [
        (1, 0, [5, 6, 7], True)
    ]
    assert len(steps) == AHEAD_STEPS + 2
    assert device.seen[AHEAD_STEPS + 1 :: 2] == ["collect", "collect"]


def test_weights_are_put_in_place_behind_every_step():
    """
    Read when that is said, put in place when that is, with nothing left to compute.
    """
    with follower() as (device, pipe):
        pipe.send(encode_step(STEP))
        pipe.send(encode("prepare", "/next"))
        assert pipe.receive() == ("done",)
        assert "/next" not in device.seen
        pipe.send(encode("commit"))
    assert device.seen[1:] == ["collect", "/next"]


def test_a_follower_says_why_it_could_not_read():
    """
    An operator's words are handed on, a bug's are named; either way it goes on.
    """
    with follower() as (device, pipe):
        pipe.send(encode("prepare", "/bad"))
        assert pipe.receive() == ("fault", "not a model", "so it is", "another")
        pipe.send(encode("drop"))
        pipe.send(encode("prepare", "/ugly"))
        assert pipe.receive() == ("fault", "RuntimeError: no luck")
        pipe.send(encode_step(STEP))
    assert len(device.seen) == 1
