"""
JSON of long documents, encoded in pieces: `json.dumps` holds the event loop until its end.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

PIECE_ITEMS = 256  # of a list, encoded at once
TURN_CHARS = 1 << 16  # encoded between two turns of the loop


def dumps(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


async def encode(document: Any) -> bytes:
    """
    Return what `dumps` does; the loop goes on between the pieces of long lists.
    """
    pieces, chars = [], 0
    for piece in _pieces(document):
        pieces.append(piece)
        chars += len(piece)
        if chars > TURN_CHARS:
            chars = 0
            await asyncio.sleep(0)
    return "".join(pieces).encode()


def _pieces(value: Any) -> Iterator[str]:
    """
    Yield the parts of *value*, whose dicts have keys that are strings.
    """
    if isinstance(value, dict) and value:
        before = "{"
        for key, each in value.items():
            yield f"{before}{json.dumps(key, ensure_ascii=False)}: "
            yield from _pieces(each)
            before = ", "
        yield "}"
    elif isinstance(value, list) and len(value) > PIECE_ITEMS:
        before = "["
        for start in range(0, len(value), PIECE_ITEMS):
            part = json.dumps(value[start : start + PIECE_ITEMS], ensure_ascii=False)
            yield before + part[1:-1]
            before = ", "
        yield "]"
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        before = "["
        for each in value:
            yield before
            yield from _pieces(each)
            before = ", "
        yield "]"
    else:
        yield json.dumps(value, ensure_ascii=False)
