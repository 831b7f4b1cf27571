"""
Reads files in several threads; each thread has a buffer and, for a GPU, a stream.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from runtime.models.read_plan import Read

READERS = 8  # threads: one alone is limited by latency


def read_in_parallel(
    reads: Sequence[Read], work: Callable[[Read, Callable[[], Tensor]], None], device: torch.device
) -> None:
    """
    Call *work* for all reads in several threads; the reads start in order.

    Args:
        work: Called with a read and a function that returns the thread's buffer.  The thread's
            next read reuses the buffer.
    """
    pending = deque(reads)
    largest = max(read.size_bytes for read in reads)
    before = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run() -> None:
        buffers: list[Tensor] = []

        def buffer() -> Tensor:
            if not buffers:
                buffers.append(host_bytes(largest, device))
            return buffers[0]

        with torch.inference_mode(), _stream_behind(before):
            while pending:
                try:
                    read = pending.popleft()
                except IndexError:  # another thread took the last one
                    return
                try:
                    work(read, buffer)
                except BaseException:
                    pending.clear()  # stops the other threads
                    raise

    with ThreadPoolExecutor(READERS) as pool:
        for future in [pool.submit(run) for _ in range(min(READERS, len(reads)))]:
            future.result()


@contextmanager
def _stream_behind(before: torch.cuda.Stream | None) -> Iterator[None]:
    """
    Use a new stream that waits for *before*; None: no GPU, do nothing.
    """
    if before is None:
        yield
        return
    with torch.cuda.device(before.device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield


def wait(device: torch.device) -> None:
    """
    Wait for this thread's work on the GPU.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def host_bytes(size_bytes: int, device: torch.device) -> Tensor:
    """
    Return host memory; pinned if *device* is a GPU, for fast copies.
    """
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def give_back_host_memory() -> None:
    """
    Return torch's cached pinned memory to the system; slow, and may block the GPU.
    """
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
