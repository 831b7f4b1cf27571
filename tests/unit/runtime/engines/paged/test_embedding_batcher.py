import base64

import pytest

from runtime.engines.base.protocol import Embed, FinishReason, Share
from runtime.engines.paged.embedding_batcher import MAX_TEXTS, EmbeddingBatcher
from runtime.engines.paged.fairness import FairShares
from runtime.engines.paged.step import DeviceLost

BAD, LOST, NAN = 66, 67, 68


class Model:
    """
    Embeds a text as its tokens; fails on a batch with BAD, loses its device on LOST.
    """

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append([len(text) for text in texts])
        tokens = [token for text in texts for token in text]
        if LOST in tokens:
            raise DeviceLost
        if BAD in tokens:
            raise ValueError("a secret")
        return [None if NAN in text else bytes(text) for text in texts]


def make(*texts, batch_tokens=100, timeout_s=10.0):
    model = Model()
    batcher = EmbeddingBatcher(model, batch_tokens, FairShares(4))
    for id, text in enumerate(texts):
        batcher.submit(Embed(id, text, timeout_s), now_s=0.0)
    return model, batcher


def ends(report):
    return {id: FinishReason(reason) for id, reason, _ in report.ended}


def test_a_batch_ends_with_the_vectors_of_its_texts():
    """
    Each under its id; then nothing waits.
    """
    _, batcher = make([1, 2], [3])
    report = batcher.turn(1.0)
    assert {id: base64.b64decode(vector) for id, vector in report.vectors} == {
        0: b"\1\2",
        1: b"\3",
    }
    assert ends(report) == {0: FinishReason.STOP, 1: FinishReason.STOP}
    assert len(batcher) == 0


def test_a_batch_has_bounds():
    """
    Of tokens, padding included, and of texts; a longer text is a batch of its own.
    """
    model, batcher = make([1] * 30, [1] * 30, [1] * 40, [1] * 200, [1])
    while len(batcher):
        batcher.turn(1.0)
    assert model.batches == [[30, 30], [40], [200], [1]]
    model, batcher = make(*[[1]] * (MAX_TEXTS + 1))
    batcher.turn(1.0)
    assert model.batches == [[1] * MAX_TEXTS]


def test_a_batch_beside_answers_is_no_longer_than_one_of_their_steps():
    """
    They wait for it.  A text that is longer is not parted.
    """
    texts = [[1] * 20] * 10
    model, batcher = make(*texts, [1] * 90)
    batcher.turn(1.0, most_tokens=40)
    batcher.turn(1.0)
    batcher.turn(1.0, most_tokens=500)
    assert model.batches == [[20] * 2, [20] * 5, [20] * 3]
    batcher.turn(1.0, most_tokens=40)
    assert model.batches[-1] == [90]


def test_a_text_that_fails_ends_alone():
    """
    The others of its batch are computed; the report has no words of the text.
    """
    _, batcher = make([1], [BAD], [NAN], [4])
    report = batcher.turn(1.0)
    assert ends(report) == {
        0: FinishReason.STOP,
        1: FinishReason.ERROR,
        2: FinishReason.NONFINITE,
        3: FinishReason.STOP,
    }
    assert {id for id, _ in report.vectors} == {0, 3}
    assert "secret" not in str(report)


def test_a_lost_device_ends_the_engine():
    _, batcher = make([LOST], [1])
    with pytest.raises(DeviceLost):
        batcher.turn(1.0)


def test_what_is_late_or_cancelled_is_not_computed():
    """
    Late texts end as EXPIRED; cancelled ones have no reader.
    """
    model, batcher = make([1], [2])
    batcher.submit(Embed(2, [3, 3], 99.0), now_s=0.0)
    batcher.cancel(1)
    report = batcher.turn(10.0)
    assert ends(report) == {0: FinishReason.EXPIRED, 2: FinishReason.STOP}
    assert model.batches == [[2]]


FLOOD, POLITE = Share("flood"), Share("polite")


def flooded(texts=200, tokens=10):
    model, shares = Model(), FairShares(4)
    batcher = EmbeddingBatcher(model, 100, shares)
    for id in range(texts):
        batcher.submit(Embed(id, [1] * tokens, 9.0, FLOOD), now_s=0.0)
    return model, batcher, shares


def test_the_texts_of_one_key_do_not_wait_for_the_queue_of_another():
    """
    They share the next batch, token by token; the control has one key for all.
    """
    _, batcher, _ = flooded()
    for id in range(1000, 1003):
        batcher.submit(Embed(id, [2] * 10, 9.0, POLITE), now_s=0.0)
    assert {1000, 1001, 1002} <= ends(batcher.turn(1.0)).keys()

    _, batcher, _ = flooded()
    batcher.submit(Embed(1000, [2] * 10, 9.0, FLOOD), now_s=0.0)
    turns = 0
    while 1000 not in ends(batcher.turn(1.0)):
        turns += 1
    assert turns == 20


def test_keys_get_batches_by_their_weights_and_pay_for_their_other_requests():
    """
    With the counters that answers have.
    """

    def taken(shares, batcher, polite):
        for id in range(1000, 1100):
            batcher.submit(Embed(id, [2] * 10, 9.0, polite), now_s=0.0)
        got = [id for _ in range(8) for id in ends(batcher.turn(1.0))]
        return sum(id >= 1000 for id in got), len(got)

    _, batcher, shares = flooded()
    assert taken(shares, batcher, POLITE) == (40, 80)
    _, batcher, shares = flooded()
    assert taken(shares, batcher, Share("polite", weight=3)) == (60, 80)
    _, batcher, shares = flooded()
    shares.arrive(POLITE, 0.0)
    shares.charge(POLITE, 400)  # of an answer
    assert taken(shares, batcher, POLITE) == (20, 80)
    _, batcher, shares = flooded()
    assert taken(shares, batcher, Share("polite", priority=4)) == (80, 80)


def test_texts_of_one_key_go_by_their_priority():
    model, batcher = make([1] * 60, [2] * 60)
    batcher.submit(Embed(7, [3] * 50, 9.0, priority=-1), now_s=0.0)
    batcher.turn(1.0)
    assert model.batches == [[50]]


def test_nothing_is_left_of_texts_that_have_ended():
    """
    Computed, cancelled or late.
    """
    _, batcher, shares = flooded(texts=20)
    batcher.cancel(3)
    batcher.cancel(3)
    batcher.turn(1.0)
    batcher.turn(100.0)
    assert len(batcher) == 0
    assert batcher._deadlines == []
    assert shares._waiting == {}
