import contextlib
import socket
import threading
from dataclasses import replace
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
    ((0, b"\x01\x00\x00\x00"),),
)


class RecordingDevice:
    """
    Records its calls; a directory that ends in /bad is not a model.
    """

    def __init__(self):
        self.events = []

    def launch(self, step):
        self.events.append(step)
        return SimpleNamespace(
            awaits_masks=any(join.awaits_masks for join in step.joins),
            mask=lambda masks: self.events.append(masks),
            collect=lambda: self.events.append("collect"),
        )

    def prepare(self, model_dir):
        if model_dir.endswith("/bad"):
            raise ModelError("not a model", why="so it is", fix="another")
        if model_dir.endswith("/ugly"):
            raise RuntimeError("no luck")
        return lambda: self.events.append(model_dir)


@contextlib.contextmanager
def open_worker():
    """
    Yield a device and rank 0's end of the pipe; close the pipe afterwards.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    device = RecordingDevice()
    opened = SimpleNamespace(runner=device, prepare=device.prepare)
    thread = threading.Thread(target=TPWorker(Pipe(theirs), opened).run)
    thread.start()
    pipe = Pipe(ours)
    try:
        yield device, pipe
    finally:
        pipe.close()
        thread.join(60)
    assert not thread.is_alive()


def test_a_worker_launches_the_broadcast_steps_within_its_limit():
    """
    The same steps in the same order; above the limit it waits for the oldest one.
    """
    with open_worker() as (device, pipe):
        for _ in range(AHEAD_STEPS + 2):
            pipe.send(encode_step(STEP))
        pipe.send(encode("prepare", "/bad"))
        pipe.receive()  # so it has done all before
    steps = [step for step in device.events if step != "collect"]
    (join,) = steps[0].joins
    assert (join.slot, list(join.pages)) == (1, [4, 5])
    assert join.params == SamplingParams(1, 0.5, 0.9, 2**63 - 1)
    assert steps[0].decodes == STEP.decodes
    assert steps[0].masks == STEP.masks
    assert [(c.slot, c.start, list(c.tokens), c.is_last) for c in steps[0].chunks] == [
        (1, 0, [5, 6, 7], True)
    ]
    assert len(steps) == AHEAD_STEPS + 2
    assert device.events[AHEAD_STEPS + 1 :: 2] == ["collect", "collect"]


def test_weights_are_committed_after_every_step():
    """
    They are read and committed on separate messages; no step is pending at the commit.
    """
    with open_worker() as (device, pipe):
        pipe.send(encode_step(STEP))
        pipe.send(encode("prepare", "/next"))
        assert pipe.receive() == ("done",)
        assert "/next" not in device.events
        pipe.send(encode("commit"))
    assert device.events[1:] == ["collect", "/next"]


def test_a_worker_reports_why_a_read_failed():
    """
    Errors for the operator pass unchanged, bugs are named; the worker continues.
    """
    with open_worker() as (device, pipe):
        pipe.send(encode("prepare", "/bad"))
        assert pipe.receive() == ("fault", "not a model", "so it is", "another")
        pipe.send(encode("drop"))
        pipe.send(encode("prepare", "/ugly"))
        assert pipe.receive() == ("fault", "RuntimeError: no luck")
        pipe.send(encode_step(STEP))
    assert len(device.events) == 1


def test_masks_reach_the_steps_that_await_them():
    """
    In the order of their launch, past a step without masks.
    """
    awaiting = replace(STEP, joins=(replace(STEP.joins[0], awaits_masks=True),))
    with open_worker() as (device, pipe):
        for step in (awaiting, STEP, awaiting):
            pipe.send(encode_step(step))
        for word in (b"\x01\x00\x00\x00", b"\x02\x00\x00\x00"):
            pipe.send(encode("mask", [(1, word)]))
        pipe.send(encode("prepare", "/bad"))
        pipe.receive()  # so it has done all before
    masks = [event for event in device.events if isinstance(event, list)]
    assert masks == [[(1, b"\x01\x00\x00\x00")], [(1, b"\x02\x00\x00\x00")]]
    steps = [event for event in device.events if isinstance(event, Step)]
    assert [step.joins[0].awaits_masks for step in steps] == [True, False, True]
