"""
Measures how long the event loop stands still while a body is read: `python -m` this module.

CPU time of the longest step, the smallest of three runs; docs/benchmarks.md has the figures.
"""

import asyncio
import contextlib
import time

from runtime.server import body
from runtime.server.errors import Failed
from runtime.server.openai_bodies import ChatBody, CompletionBody
from runtime.server.schemas import GenerateBody

SIZE = 8_000_000  # bytes, just under the largest body
RUNS = 3
MESSAGE = '{"role": "user", "content": "x"}'


def prompt(piece):
    return GenerateBody, f'{{"prompt": "{piece * (SIZE // len(piece.encode()))}"}}'


BODIES = {
    "escaped quotes": prompt('\\"'),
    "escaped backslashes": prompt("\\\\"),
    "escaped newlines": prompt("a\\n"),
    "CJK": prompt("船"),
    "2,048 messages": (ChatBody, f'{{"messages": [{", ".join([MESSAGE] * 2048)}]}}'),
    "one message": (
        ChatBody,
        f'{{"messages": [{{"role": "user", "content": "{"x" * SIZE}"}}]}}',
    ),
    "128 prompts": (
        CompletionBody,
        f'{{"prompt": [{", ".join([chr(34) + chr(92) * 60_000 + chr(34)] * 128)}]}}',
    ),
    "150,000 token ids": (CompletionBody, f'{{"prompt": [{", ".join(["12345"] * 150_000)}]}}'),
    "lists in lists": (ChatBody, f'{{"messages": {"[" * 8000}{"]" * 8000}}}'),
}


async def longest_step_s(kind, raw):
    """
    Return the most CPU time between two turns of another task.
    """
    longest_s = 0.0

    async def tick():
        nonlocal longest_s
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - before_s)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    with contextlib.suppress(Failed):
        await body.parse(bytearray(raw), kind)
    await asyncio.sleep(0)
    ticker.cancel()
    return longest_s


if __name__ == "__main__":
    for name, (kind, text) in BODIES.items():
        raw = text.encode()
        steps_s = [asyncio.run(longest_step_s(kind, raw)) for _ in range(RUNS)]
        print(f"{name:<20} {min(steps_s) * 1000:4.0f} ms")
