import asyncio
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract import MAX_BODY_BYTES
from runtime.server import body
from runtime.server.errors import Failed
from runtime.server.schemas import Body, BodyBounds, GenerateBody

BOUNDS = BodyBounds(strings=2, containers=3, structure_bytes=12, escapes=5)


class Small(Body):
    BOUNDS = BOUNDS


def refuses(parts):
    shape = body._Shape(Small)
    try:
        for part in parts:
            shape.add(part)
    except Failed:
        return True
    return False


def counted(text):
    """
    Return whether *text* is beyond the bounds, counted at once.
    """
    plain = re.sub(rb'\\[\\"]', b"", text)
    pieces = plain.split(b'"')
    structure = b"".join(pieces[::2])
    containers = structure.count(b"[") + structure.count(b"{")
    escapes = len(re.findall(rb"\\.", text))
    return (
        len(pieces) > 2 * BOUNDS.strings
        or len(structure) > BOUNDS.structure_bytes
        or containers > BOUNDS.containers
        or escapes > BOUNDS.escapes
    )


@given(
    text=st.text('\\"[{a ', max_size=30).map(str.encode),
    cuts=st.lists(st.integers(0, 6), max_size=12),
)
def test_a_body_is_counted_in_parts_as_at_once(text, cuts):
    """
    Wherever it is cut, within escapes too.
    """
    parts, at = [], 0
    for cut in cuts:
        parts.append(text[at : at + cut])
        at += cut
    assert refuses([*parts, text[at:]]) == counted(text)


@pytest.mark.parametrize("text", ['"' * 100_000, "\\" * 100_000, "a\n" * 50_000, "船" * 50_000])
def test_the_loop_goes_on_while_a_body_is_read(monkeypatch, text):
    """
    Other tasks get a turn for each part of it.
    """
    monkeypatch.setattr(body, "SHAPE_BYTES", 1 << 14)
    raw = bytearray(json.dumps({"prompt": text}).encode())
    turns = 0

    async def read():
        nonlocal turns
        reading = asyncio.create_task(body.parse(raw, GenerateBody))
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        return await reading

    assert asyncio.run(read()).prompt == text
    assert turns > len(raw) >> 14


def test_a_body_that_is_nested_too_deeply_is_called_so():
    """
    It is JSON.
    """
    text = '{"prompt": ' + "[" * 2000 + "]" * 2000 + "}"
    with pytest.raises(Failed) as caught:
        asyncio.run(body.parse(bytearray(text.encode()), GenerateBody))
    assert "nested too deeply" in str(caught.value)


def test_escapes_are_bounded(monkeypatch):
    """
    Each takes the parser twice as long as a character; \\u0061 in the whole body is allowed.
    """
    assert MAX_BODY_BYTES // len("\\u0061") < BodyBounds().escapes
    monkeypatch.setattr(GenerateBody, "BOUNDS", BodyBounds(escapes=6))
    text = b'{"prompt": "\\n\\t\\u0061\\\\\\"\\/%b"}'
    assert asyncio.run(body.parse(bytearray(text % b""), GenerateBody)).prompt == '\n\ta\\"/'
    with pytest.raises(Failed, match="escapes"):
        asyncio.run(body.parse(bytearray(text % b"\\n"), GenerateBody))
