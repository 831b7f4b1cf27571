"""
Many simulated hosts in a process of their own, behind one Unix socket.

    python -m deploy.bench.simulated_hosts SOCKET LATENCY_MS HOST...

A request is a line `HOST VERB BYTES` and so many bytes; its answer, after the latency, is a line
`BYTES` and so many bytes.  The host `-` answers the verb `counts` with the calls of each host.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping

from deploy.bench.simulated_host import SimulatedHost

COUNTS = ("-", "counts")
_LINE_MAX = 1 << 20


async def serve(path: str, latency_s: float, hosts: Mapping[str, SimulatedHost]) -> None:
    """
    Answer on the socket *path* until standard input ends.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            host, verb, size = line.decode().split()
            text = (await reader.readexactly(int(size))).decode()
            began_s = time.monotonic()
            if (host, verb) == COUNTS:
                answer = json.dumps({name: one.counts for name, one in hosts.items()})
            else:
                answer = hosts[host].answer(verb, text)
                await asyncio.sleep(max(0.0, latency_s - (time.monotonic() - began_s)))
            data = answer.encode()
            writer.write(b"%d\n" % len(data) + data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=_LINE_MAX)
    async with server:
        print("ready", flush=True)  # noqa: T201 - read by the process that started this one
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main(argv: list[str]) -> int:
    path, latency_ms, *names = argv
    hosts = {name: SimulatedHost(time.monotonic) for name in names}
    asyncio.run(serve(path, float(latency_ms) / 1000, hosts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
