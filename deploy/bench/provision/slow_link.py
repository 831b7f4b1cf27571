"""
A slow link to each host: a TCP proxy that delays every byte, as a program of its own.

    python -m deploy.bench.provision.slow_link DELAY_MS ADDRESS...

Listens on one free port of loopback for each address, prints the ports on one line, and forwards
to port 22.  A handshake takes a round trip more, as on a real link.  Ends with its standard input.
"""

import asyncio
import contextlib
import os
import socket
import sys

_CHUNK = 64 * 1024
_SSH = 22


async def serve(delay_s: float, addresses: list[str], target_port: int = _SSH) -> None:
    """
    Forward to *addresses* until standard input ends.
    """
    servers = [
        await asyncio.start_server(_Link(delay_s, address, target_port).connect, "127.0.0.1", 0)
        for address in addresses
    ]
    ports = " ".join(str(server.sockets[0].getsockname()[1]) for server in servers)
    os.write(sys.stdout.fileno(), f"{ports}\n".encode())
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        server.close()


class _Link:
    def __init__(self, delay_s: float, address: str, port: int) -> None:
        self._delay_s, self._address, self._port = delay_s, address, port

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self._delay_s)
        try:
            other = await asyncio.open_connection(self._address, self._port)
        except OSError:
            writer.close()
            return
        for end in (writer, other[1]):
            end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(self._pump(reader, other[1]), self._pump(other[0], writer))
        for end in (writer, other[1]):
            end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """
        Write what *reader* yields, each piece `delay_s` after it came.
        """
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        writing = asyncio.create_task(self._write_late(pieces, writer))
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            pieces.put_nowait((clock() + self._delay_s, data))
        await writing

    async def _write_late(
        self, pieces: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter
    ) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(OSError):
            while True:
                due_s, data = await pieces.get()
                await asyncio.sleep(max(0.0, due_s - clock()))
                if not data:
                    writer.write_eof()  # the other way may still carry something
                    return
                writer.write(data)
                await writer.drain()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) / 1000, sys.argv[2:]))
