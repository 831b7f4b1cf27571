"""
Measures how long the event loop stands still beside requests of 8 MB: `python -m` this module.

For each case of `measure_sockets`, through the whole application with a real tokenizer, and with an
engine, a chat template and a checker of grammars that take no time: the CPU time of the loop's
longest turn, and the most memory over idle; the smaller of two runs.  Unlike a time on the wall it
is nearly the same on a busy machine.  docs/benchmarks.md has the figures.
"""

import asyncio
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from runtime.engines.base.in_flight import TokenStream
from runtime.engines.base.protocol import FinishReason, Submit, encode
from runtime.server.generation import Generator
from runtime.server.grammars import GrammarReader
from runtime.server.text import TokenizerCodec
from tests.unit.runtime.fakes import FakeChecker, FakeEngine, FakeTemplate
from tests.unit.runtime.server.measure_sockets import CASES, CONTEXT, make_tokenizer, memory_mb
from tests.unit.runtime.serving import Runtime

RUNS = 2
PART_BYTES = 1 << 16
TURNS = 20  # between two looks at the memory


class NoEngine(FakeEngine):
    """
    Answers each request at once with one token, after its message to an engine is made.
    """

    def submit(self, tokens, params, timeout_s, share=None, prefix_of=None, priority=0):
        encode(Submit(1, tokens, params, timeout_s, share, prefix_of, priority))
        stream = TokenStream()
        stream.push(65)
        stream.finish(FinishReason.LENGTH)
        return 1, stream


class Meter:
    """
    Attributes:
        longest_s: CPU time of this thread in the longest turn of the loop.
        most_mb: Memory of this process, in some turns.
    """

    def __init__(self):
        self.longest_s = self.most_mb = 0.0

    async def run(self):
        turn = 0
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0)
            self.longest_s = max(self.longest_s, time.thread_time() - before_s)
            turn += 1
            if turn % TURNS == 0:
                self.most_mb = max(self.most_mb, memory_mb(os.getpid()))


async def ask(app, route, raw):
    """
    Send *raw* as an HTTP server would; return the status.
    """
    parts = [raw[start : start + PART_BYTES] for start in range(0, len(raw), PART_BYTES)]
    statuses, sent = [], iter(enumerate(parts, 1))

    async def receive():
        await asyncio.sleep(0)
        if (following := next(sent, None)) is None:
            await asyncio.Event().wait()  # the client stays
        number, part = following
        return {"type": "http.request", "body": part, "more_body": number < len(parts)}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = {"content-type": "application/json", "content-length": str(len(raw))}
    scope = {
        "type": "http",
        "method": "POST",
        "path": route,
        "raw_path": route.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "server": ("x", 1),
        "client": ("x", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    return statuses[0]


async def measure(codec, connections, route, raw):
    """
    Return the meter and the statuses.
    """
    runtime = Runtime()
    runtime.serving.generator = Generator(
        NoEngine(),
        codec,
        runtime.settings.config.limits(CONTEXT, codec.vocabulary),
        runtime.metrics.first_token,
        FakeTemplate(),
        grammars=GrammarReader(FakeChecker()),
    )
    runtime.serving.uploads.fit_context(CONTEXT, codec.longest_token_bytes)
    meter = Meter()
    metering = asyncio.create_task(meter.run())
    await asyncio.sleep(0)
    statuses = await asyncio.gather(*(ask(runtime.app, route, raw) for _ in range(connections)))
    await asyncio.sleep(0)
    metering.cancel()
    return meter, set(statuses)


def main():
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer().save(f"{folder}/tokenizer.json")
        codec = TokenizerCodec(Path(folder))
    for name in sys.argv[1:] or [name for name in CASES if name != "nothing"]:
        connections, (route, body) = CASES[name]
        raw = body.encode()
        gc.collect()
        idle_mb = memory_mb(os.getpid())
        runs = [asyncio.run(measure(codec, connections, route, raw)) for _ in range(RUNS)]
        longest_s = min(meter.longest_s for meter, _ in runs)
        most_mb = min(meter.most_mb for meter, _ in runs)
        statuses = sorted(runs[-1][1])
        print(f"{name:<28} {longest_s * 1000:4.0f} ms {most_mb - idle_mb:5.0f} MB  {statuses}")


if __name__ == "__main__":
    main()
