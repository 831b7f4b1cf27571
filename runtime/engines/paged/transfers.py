"""
Copies between host and device that do not wait.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Transfers:
    """
    Copies to and from one device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def rows(self, *rows: Sequence[int]) -> list[Tensor]:
        """
        Upload *rows* of one length as int32, each aligned to 16 bytes: for another alignment Triton
        would compile the kernel again in the middle of a step.
        """
        count = len(rows[0])
        more = [0] * (whole(count) - count)
        return [row[:count] for row in self.upload([[*row, *more] for row in rows])]

    def upload(self, values: Sequence[object], dtype: torch.dtype = torch.int32) -> Tensor:
        if self._device.type != "cuda":
            return torch.tensor(values, dtype=dtype)
        # Pinned: the copy is asynchronous.  torch keeps the memory until it is done.
        host = torch.tensor(values, dtype=dtype, pin_memory=True)
        return host.to(self._device, non_blocking=True)

    def upload_words(self, rows: Sequence[bytes]) -> Tensor:
        """
        Upload *rows* of one length as int32, in this machine's byte order.
        """
        host = torch.frombuffer(bytearray().join(rows), dtype=torch.int32).view(len(rows), -1)
        if self._device.type != "cuda":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def download(self, result: Tensor) -> Tensor:
        """
        Return the host's copy of *result*, int32, which is complete once the device gets here.
        """
        if self._device.type != "cuda":
            return result
        host = torch.empty(result.shape, dtype=torch.int32, pin_memory=True)
        host.copy_(result, non_blocking=True)
        return host


def whole(count: int) -> int:
    """
    Return *count* int32, rounded up to whole 16 bytes, the alignment of pointers.
    """
    return -(-count // 4) * 4


class _Memory:
    """
    Memory of a GPU, for `torch.as_tensor`.

    Source: CUDA array interface, version 3.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * tensor.element_size() for stride in tensor.stride()),
            "typestr": "<f4",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def unowned(tensor: Tensor) -> Tensor:
    """
    Return a view of *tensor*, fp32 on a GPU, that does not keep its memory from being reused.

    A graph's tensors stay where they are.  Owned by Python, they would not share the graphs' pool:
    the logits of all graphs would take GiB.
    """
    assert tensor.dtype == torch.float32, tensor.dtype
    return torch.as_tensor(_Memory(tensor), device=tensor.device)
