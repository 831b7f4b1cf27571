"""
Threads that read files for a device, each with a buffer and, on a GPU, a stream.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from runtime.models.read_plan import Read

READERS = 8  # a single one is limited by latency


def read_in_parallel(
    reads: Sequence[Read], work: Callable[[Read, Callable[[], Tensor]], None], device: torch.device
) -> None:
    """
    Call *work* for all reads, in order, in several threads.

    Args:
        work: Gets a read and a function that returns the thread's buffer, reused by its next read.
    """
    todo = deque(reads)
    largest = max(read.size_bytes for read in reads)
    before = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run() -> None:
        buffers: list[Tensor] = []

        def buffer() -> Tensor:
            if not buffers:
                buffers.append(host_bytes(largest, device))
            return buffers[0]

        with torch.inference_mode(), _stream_behind(before):
            while todo:
                try:
                    read = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    work(read, buffer)
                except BaseException:
                    todo.clear()  # stops the other threads
                    raise

    with ThreadPoolExecutor(READERS) as pool:
        for done in [pool.submit(run) for _ in range(min(READERS, len(reads)))]:
            done.result()


@contextmanager
def _stream_behind(before: torch.cuda.Stream | None) -> Iterator[None]:
    """
    Use a new stream that waits for *before*; None: there is no GPU.
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
    Return host memory, pinned if *device* is a GPU: only then are copies to it fast.
    """
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def give_back_host_memory() -> None:
    """
    Return torch's cached pinned memory to the system; slow, and may block the GPU.
    """
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
