"""
Long documents, in pieces that the event loop goes on between.
"""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server import json_pieces
from runtime.server.json_pieces import PIECE_ITEMS, dumps, encode

pytestmark = pytest.mark.anyio
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(document=VALUES)
def test_pieces_are_one_document(document):
    """
    The same as at once, also where lists are longer than a piece.
    """
    whole = {"a": document, "long": [document] * 3}
    pieces = "".join(json_pieces._pieces(whole))
    assert pieces == json.dumps(whole, ensure_ascii=False)


async def test_no_piece_is_long(monkeypatch):
    """
    Of the answer with the most log probabilities: what is encoded at once is counted.
    """
    scores = {
        "tokens": ["x"] * 16_384,
        "token_logprobs": [-1.5] * 16_384,
        "top_logprobs": [{str(n): -n / 3 for n in range(6)}] * 16_384,
        "text_offset": list(range(16_384)),
    }
    document = {"choices": [{"text": "x" * 16_384, "logprobs": scores}], "usage": {}}
    wanted, lengths, turns, real = dumps(document), [], 0, json.dumps

    def counted(value, **more):
        lengths.append(len(value) if isinstance(value, list) else 1)
        return real(value, **more)

    async def tick():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(json_pieces.json, "dumps", counted)
    ticking = asyncio.create_task(tick())
    assert await encode(document) == wanted
    ticking.cancel()
    assert max(lengths) == PIECE_ITEMS
    assert turns > 20
