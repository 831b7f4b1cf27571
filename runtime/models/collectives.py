"""
What the shards of a model do together, each in a process of its own.

The ranks find each other by a file, but gloo and NCCL list the network's interfaces (AF_NETLINK)
and connect over one (AF_INET), also within a host.  In a network namespace with only the loopback
that is enough: GPUs exchange over NVLink, PCIe or shared memory.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.models.shard import Shard


class ShardGroup:
    """
    What the ranks do together: each calls the same methods, in the same order.
    """

    def __init__(self, shard: Shard, device: torch.device, store: str) -> None:
        self._size, self._device = shard.size, device
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")  # all are on this host
        is_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            init_method=f"file://{store}",
            rank=shard.rank,
            world_size=shard.size,
            device_id=device if is_gpu else None,  # connect now, not within a graph's capture
        )

    def reduce(self, x: Tensor) -> Tensor:
        if x.numel():
            dist.all_reduce(x)
        return x

    def gather(self, logits: Tensor) -> Tensor:
        rows, columns = logits.shape
        parts = logits.new_empty((self._size, rows, columns))
        if rows:
            dist.all_gather(list(parts), logits)
        return parts.transpose(0, 1).reshape(rows, self._size * columns)

    def least(self, count: int) -> int:
        found = torch.tensor([count], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)
