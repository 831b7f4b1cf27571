"""
One HTTP connection: deadlines for its head and for a client that does not read.

uvicorn has neither.  HAProxy in front of a slot has both; the runtime does not rely on it.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.contract import REQUEST_ID_HEADER
from runtime.server.admission import Refusal
from runtime.server.errors import error_response

HEAD_TIMEOUT_S = 10.0  # from the first byte of a request to its whole head
READ_TIMEOUT_S = 30.0  # for a client to take what waits for it
LINGER_S = 1.0  # for a proxy to read an answer that came before the whole request
MAX_HEAD_BYTES = 16 << 10


class HttpConnection(H11Protocol):
    """
    A connection that ends when its client is silent within a head, or does not read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = LingeringTransport(transport, self._is_receiving)
        self._start_head_timer()

    def _is_receiving(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # the rest of a body, after its refusal
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif not self.transport.is_closing():
            self._start_head_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_read_timer()  # a closed transport waits for its last bytes, without end

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_read_timer()

    def send_400_response(self, msg: str) -> None:
        """
        Answer what is not HTTP with the one error document.
        """
        refused = Refusal(400, "bad_request", "the request is not valid HTTP")
        request_id = uuid.uuid4().hex
        status, headers, body = error_response(refused, request_id)
        headers |= {"connection": "close", REQUEST_ID_HEADER: request_id}
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=status, headers=list(headers.items()))
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_read_timer(self) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class LingeringTransport(asyncio.Transport):
    """
    A transport whose close lets the peer read the last answer.

    To close a socket with unread data is an error for its peer: HAProxy then drops the answer,
    gives the client nothing and counts an error of the slot.  So after an answer that came before
    the whole request, only the sending side is closed, and for LINGER_S the rest is dropped.

    Args:
        is_receiving: Tells whether a request is not whole yet.
    """

    def __init__(self, transport: asyncio.Transport, is_receiving: Callable[[], bool]) -> None:
        super().__init__()
        self._transport, self._is_receiving = transport, is_receiving
        self._is_lingering = False

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._is_receiving():
            self._transport.close()
            return
        self._is_lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    def write(self, data: Any) -> None:
        self._transport.write(data)

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
