"""
Several answers at once, their parts as they come.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from runtime.server.requests import TextDelta


async def together(
    streams: Sequence[AsyncGenerator[TextDelta, None]],
) -> AsyncGenerator[tuple[int, TextDelta], None]:
    """
    Yield the deltas of all *streams*, with the index of each, as they come.

    Raises:
        Failed: One of them did; the others are cancelled.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, TextDelta] | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(index: int, stream: AsyncGenerator[TextDelta, None]) -> None:
        end: Exception | None = None
        try:
            async with aclosing(stream):
                async for delta in stream:
                    await queue.put((index, delta))
        except Exception as error:
            end = error
        await queue.put(end)

    tasks: list[asyncio.Task[None]] = []
    try:
        for index, stream in enumerate(streams):
            tasks.append(asyncio.create_task(pump(index, stream)))
            await asyncio.sleep(0)  # one in each turn of the loop: prompts may be long
        running = len(tasks)
        while running:
            match await queue.get():
                case None:
                    running -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
