"""
The threads that read files for a device, each with a buffer, and with a stream on a GPU.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from runtime.models.read_plan import Read

READERS = 8  # one alone waits for the disk, or for the memory


def read_in_parallel(
    reads: Sequence[Read], work: Callable[[Read, Callable[[], Tensor]], None], device: torch.device
) -> None:
    """
    Do *work* on all reads, in the order of the disk, in several threads.

    Args:
        work: Gets a read, and what returns a buffer for it, which the thread's next read reuses.
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
                    todo.clear()  # the others need not go on
                    raise

    with ThreadPoolExecutor(READERS) as pool:
        for done in [pool.submit(run) for _ in range(min(READERS, len(reads)))]:
            done.result()


@contextmanager
def _stream_behind(before: torch.cuda.Stream | None) -> Iterator[None]:
    """
    Work on a stream of its own, behind what *before* has been given; None: there is no GPU.
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
    Wait for what this thread has given a GPU to do.
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
    Let the system have the pinned memory that torch keeps; slow, and the GPU may wait for it.
    """
    if torch.cuda.is_available():
        torch._C._host_emptyCache()
