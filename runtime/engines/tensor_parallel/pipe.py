"""
Messages between the ranks of a model: tuples of plain values, each after its length.
"""

import marshal
import socket
import struct
import threading
from typing import Any

from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.step import Chunk, Decode, Join, Step

LENGTH = struct.Struct("=I")


class Pipe:
    """
    One end of a socket between two ranks.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._file = sock, sock.makefile("rb")
        self._lock = threading.Lock()  # a thread that reads weights sends, too

    def send(self, message: bytes) -> None:
        with self._lock:
            self._socket.sendall(message)

    def receive(self) -> tuple[Any, ...] | None:
        """
        Wait for a message; None once the other end is closed.
        """
        try:
            head = self._file.read(LENGTH.size)
            if len(head) < LENGTH.size:
                return None
            (size,) = LENGTH.unpack(head)
            body = self._file.read(size)
        except ConnectionResetError:
            return None
        # Safe: both ends are this version of this program, over a private socket pair.
        return marshal.loads(body) if len(body) == size else None  # noqa: S302

    def close(self) -> None:
        """
        Close the socket; `receive` in another thread returns None.
        """
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def encode(*message: Any) -> bytes:
    body = marshal.dumps(message)
    return LENGTH.pack(len(body)) + body


def encode_step(step: Step) -> bytes:
    joins = [_encode_join(join) for join in step.joins]
    chunks = [
        (c.slot, c.start, list(c.tokens), c.is_last, list(c.targets), c.top) for c in step.chunks
    ]
    decodes = [(d.slot, d.position) for d in step.decodes]
    return encode("step", joins, decodes, chunks, list(step.masks))


def decode_step(joins: list[Any], decodes: list[Any], chunks: list[Any], masks: list[Any]) -> Step:
    return Step(
        tuple(_decode_join(*join) for join in joins),
        tuple(Decode(*decode) for decode in decodes),
        tuple(Chunk(*chunk) for chunk in chunks),
        tuple(masks),
    )


def _encode_join(join: Join) -> tuple[Any, ...]:
    more = list(join.prompt), list(join.stop_token_ids), join.stops_from, join.awaits_masks
    return join.slot, list(join.pages), join.params.as_document(), *more


def _decode_join(slot: int, pages: list[int], params: dict[str, Any], *more: Any) -> Join:
    return Join(slot, pages, SamplingParams.from_document(params), *more)
