"""
Collective operations of a model's shards; each shard runs in a process of its own.

The ranks meet through a file.  gloo and NCCL also list the network interfaces (AF_NETLINK) and
connect over one of them (AF_INET), even on one host.  A network namespace with only the loopback
interface is enough: GPUs exchange data over NVLink, PCIe or shared memory.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.models.shard import Shard


class ShardGroup:
    """
    Collective operations; every rank must call the same methods in the same order.
    """

    def __init__(self, shard: Shard, device: torch.device, store: str) -> None:
        self._size, self._device = shard.size, device
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")  # all ranks are on this host
        is_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            init_method=f"file://{store}",
            rank=shard.rank,
            world_size=shard.size,
            device_id=device if is_gpu else None,  # connect now, not during a graph's capture
        )

    def reduce(self, x: Tensor) -> Tensor:
        """
        Sum x over all ranks, in place.
        """
        if x.numel():
            dist.all_reduce(x)
        return x

    def gather(self, logits: Tensor) -> Tensor:
        """
        Join the columns of all ranks' logits (rows, columns).
        """
        rows, columns = logits.shape
        parts = logits.new_empty((self._size, rows, columns))
        if rows:
            dist.all_gather(list(parts), logits)
        return parts.transpose(0, 1).reshape(rows, self._size * columns)

    def least(self, count: int) -> int:
        """
        Return the least *count* of all ranks.
        """
        smallest = torch.tensor([count], device=self._device)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)
