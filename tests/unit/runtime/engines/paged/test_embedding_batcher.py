import base64

import pytest

from runtime.engines.base.protocol import Embed, FinishReason
from runtime.engines.paged.embedding_batcher import MAX_TEXTS, EmbeddingBatcher
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
    batcher = EmbeddingBatcher(model, batch_tokens)
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
