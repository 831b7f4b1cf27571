"""
One model on several GPUs: each rank is a process and holds a shard of every weight.

Rank 0 is the engine process and schedules alone.  It broadcasts each step before it launches it,
and all ranks compute it: twice a layer they sum their parts, and at the end each gathers all logits
and draws the same token.

The ranks find each other by a file, but gloo and NCCL list the network's interfaces (AF_NETLINK)
and connect over one (AF_INET), also within a host.  The unit allows that where there are more GPUs
than one.  Of a network of its own, PrivateNetwork=yes, it has the loopback alone, and no more is
needed: GPUs exchange over NVLink, PCIe or shared memory.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist

from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import Load
from runtime.engines.base.protocol import encode as encode_load
from runtime.engines.paged.check_files import check_files
from runtime.engines.paged.deferred import DeviceRunning
from runtime.engines.paged.device_memory import plan_here
from runtime.engines.paged.load_engine import fill, make_ready
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import LoadedModel, Running, Step, StepOutput
from runtime.engines.tensor_parallel.pipe import encode, encode_step
from runtime.engines.tensor_parallel.ranks import TPWorkers
from runtime.models.collectives import ShardGroup
from runtime.models.loader import read_config
from runtime.models.shard import Shard


class ShardedRunner:
    """
    See `step.StepRunner`: launches on all ranks.
    """

    def __init__(self, own: PagedRunner, workers: TPWorkers) -> None:
        self._own, self._workers = own, workers

    def launch(self, step: Step) -> Running:
        self._workers.broadcast(encode_step(step))
        # Out of memory is fatal, too: the other ranks are in the middle of the step.
        with self._workers.abort_on_rank_failure():
            return _ShardedRunning(self._own.launch(step), self._workers)

    def close(self) -> None:
        self._workers.close()
        dist.destroy_process_group()


class _ShardedRunning:
    """
    See `step.Running`.
    """

    def __init__(self, own: DeviceRunning, workers: TPWorkers) -> None:
        self._own, self._workers = own, workers

    @property
    def awaits_masks(self) -> bool:
        return self._own.awaits_masks

    def mask(self, masks: Sequence[tuple[int, bytes]]) -> None:
        self._workers.broadcast(encode("mask", list(masks)))
        with self._workers.abort_on_rank_failure():
            self._own.mask(masks)

    def collect(self) -> StepOutput:
        with self._workers.abort_on_rank_failure():
            done = self._own.done
            # Not `synchronize`: the GPU would wait forever for a lost rank.
            while done is not None and not done.query():  # type: ignore[no-untyped-call]
                self._workers.check()
                time.sleep(0)
            return self._own.collect()


def open_sharded(load: Load, first_pid: int | None = None) -> LoadedModel:
    """
    As `load_engine.load_engine`, on `gpus` GPUs.
    """
    options = load.options
    check_files(load.model_dir, options)  # also raises if the model can't be sharded
    if options.device == "cuda" and torch.cuda.device_count() < options.gpus:
        raise ModelError(
            f"gpus: {options.gpus}",
            why=f"torch sees {torch.cuda.device_count()}",
            fix="lower gpus (service.gpus of the fleet file); nvidia-smi there lists what it has",
        )
    if dist.is_initialized():
        raise RuntimeError("this process has already started ranks: swap their weights, or restart")
    workers = TPWorkers(options.gpus - 1)

    def barrier() -> None:
        workers.gather()
        workers.broadcast(encode("go"))

    try:
        workers.broadcast(encode("open", encode_load(load)))
        own = open_rank(load, 0, workers.store, barrier, first_pid)
        workers.gather()
    except BaseException:
        workers.close()
        raise
    assert isinstance(own.runner, PagedRunner)
    runner = ShardedRunner(own.runner, workers)
    return replace(own, runner=runner, prepare=partial(_prepare, workers, own))


def open_rank(
    load: Load, rank: int, store: str, barrier: Callable[[], None], first_pid: int | None = None
) -> LoadedModel:
    """
    Load the shard of *rank*.

    Args:
        barrier: Returns when every rank has its weights.  Before it no rank enters a collective,
            which can't be cancelled.
        first_pid: See `device_memory.host_memory_of`.
    """
    shard = Shard(rank, load.options.gpus)
    device = torch.device("cpu")
    if load.options.device == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    config = read_config(load.model_dir)
    planned = plan_here(load.options, config, first_pid)  # may raise: before the barrier
    model = fill(load, config, device, shard)
    barrier()
    group = ShardGroup(shard, device, store)
    model.reduce, model.gather = group.reduce, group.gather
    return make_ready(model, load.options, group.least, planned)


def _prepare(workers: TPWorkers, own: LoadedModel, model_dir: str) -> Callable[[], None]:
    """
    See `LoadedModel.prepare`: done on all ranks, or on none.
    """
    workers.broadcast(encode("prepare", model_dir))
    try:
        try:
            finish = own.prepare(model_dir)
        finally:
            workers.gather()
    except Exception:
        workers.broadcast(encode("drop"))
        raise

    def commit() -> None:
        workers.broadcast(encode("commit"))
        with workers.abort_on_rank_failure():
            finish()

    return commit
