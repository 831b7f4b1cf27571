"""
From a model directory to answers on the CPU, and the swap to other weights.
"""

import json
import random
import sys

import pytest
import torch

from runtime.contract.errors import ConfigError, ModelError
from runtime.engines.__main__ import open_model
from runtime.engines.base.host_memory import HostMemory
from runtime.engines.paged import check_files, device_memory
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.load_engine import fill, load_engine, open_runner
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.memory.plan import plan_memory
from runtime.models.loader import load_model, read_config
from tests.unit.runtime.builders import write_model
from tests.unit.runtime.engines.paged.playing import KV_DTYPES, answer, make_load, play
from tests.unit.runtime.requests import make_request

JOB = make_request(1, list(range(1, 30)), 10, 9.0)
WIDE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}  # whole groups, for 4 bits


def open_engine(folder, **changes):
    """
    Return the result of `load_engine` and a scheduler over it, as in the engine process.
    """
    load = make_load(folder, **changes)
    opened = load_engine(load)
    scheduler = Scheduler(
        opened.runner,
        Capacity(load.options.max_batch_requests, opened.step_tokens, load.options.max_wait_s),
        opened.stop_token_ids,
        BlockAllocator(opened.pages, opened.page_tokens),
        random.Random(1),
    )
    return opened, scheduler


def ask(scheduler, request=JOB):
    return play(scheduler, [(0, request)])[0][request.id]


def test_a_directory_becomes_an_engine_that_answers(tmp_path):
    """
    The answers match its weights, and end at the config's stop tokens.
    """
    write_model(tmp_path)
    model, _ = load_model(tmp_path, device="cpu", precision="fp32")
    whole = answer(model, JOB)

    opened, scheduler = open_engine(tmp_path)
    assert ask(scheduler) == whole
    assert (opened.context_tokens, opened.vocabulary) == (128, 95)
    assert opened.parameters == sum(parameter.numel() for parameter in model.parameters())

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [whole[4]]}))
    _, scheduler = open_engine(tmp_path)
    assert ask(scheduler) == whole[: whole.index(whole[4])]


def test_a_gpu_without_triton_is_refused_with_the_import_error(tmp_path, monkeypatch):
    """
    Before the model is read; a CPU does not need Triton.
    """
    write_model(tmp_path)
    monkeypatch.setattr(check_files, "check_device", lambda device: None)
    monkeypatch.setitem(sys.modules, "runtime.kernels.fused", None)
    with pytest.raises(ModelError, match="this engine's kernels can't be loaded") as raised:
        load_engine(make_load(tmp_path / "nothing", device="cuda"))
    assert "runtime.kernels.fused" in raised.value.why
    assert load_engine(make_load(tmp_path)).pages  # negative control


@pytest.mark.parametrize("gpus", [1, 2])
def test_unsupported_head_sizes_are_refused_on_a_gpu(tmp_path, monkeypatch, gpus):
    """
    On one GPU and on several, before any weight is read.
    """
    pytest.importorskip("triton")
    write_model(tmp_path, head_dim=24)
    monkeypatch.setattr(check_files, "check_device", lambda device: None)
    with pytest.raises(ModelError, match="head_dim is 24"):
        open_model(make_load(tmp_path, device="cuda", gpus=gpus))


@pytest.mark.parametrize("kv", KV_DTYPES)
@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
def test_a_model_is_loaded_in_the_requested_bits(tmp_path, weights, kv):
    """
    In 4 or 8 bits it answers too, and has the same number of parameters.
    """
    write_model(tmp_path, **WIDE)
    opened, scheduler = open_engine(tmp_path, weights=weights, kv=kv)
    assert len(ask(scheduler)) == JOB.params.max_tokens
    assert opened.runner.cache.keys.dtype == (KV_DTYPES[kv] or torch.float32)
    assert opened.parameters == load_engine(make_load(tmp_path)).parameters


def test_the_cache_has_the_requested_pages(tmp_path):
    """
    max_batch_tokens in whole pages; without it, the whole context for each request.
    """
    write_model(tmp_path)
    assert load_engine(make_load(tmp_path, max_batch_tokens=250)).pages == 1 + 16
    assert load_engine(make_load(tmp_path, max_batch_requests=3)).pages == 1 + 3 * 8
    assert load_engine(make_load(tmp_path, context_tokens=100)).pages == 1 + 4 * 7


@pytest.mark.parametrize(
    ("changes", "context_tokens"),
    [
        ({}, 128),
        ({"context_tokens": 50}, 50),
        ({"context_tokens": 5000}, 128),
        ({"max_batch_tokens": 40}, 40),
        ({"max_batch_tokens": 40, "context_tokens": 30}, 30),
    ],
)
def test_the_context_is_the_least_of_all_limits(tmp_path, changes, context_tokens):
    """
    The model's, the configured one and the batch's; a request of exactly that length is answered.
    """
    write_model(tmp_path)
    opened, scheduler = open_engine(tmp_path, **changes)
    assert opened.context_tokens == context_tokens
    longest = make_request(1, [1] * (context_tokens - 5), 5, 9.0)
    assert len(ask(scheduler, longest)) == 5


@pytest.mark.parametrize("asked", [None, 16, 1000])
def test_a_step_has_room_for_prompts_while_every_row_decodes(tmp_path, asked):
    """
    For any configured number of tokens in a step.
    """
    write_model(tmp_path)
    opened = load_engine(make_load(tmp_path, max_batch_requests=600, step_tokens=asked))
    assert opened.step_tokens == max(600 + opened.page_tokens, asked or 0)


def test_too_little_room_for_one_request_is_an_error(tmp_path):
    """
    It has the available memory, the memory of one request, and the keys to change.
    """
    write_model(tmp_path)
    load = make_load(tmp_path)
    model, options = fill(load, read_config(tmp_path), "cpu"), load.options
    open_runner(model, options, agree=lambda pages: 9)
    with pytest.raises(ModelError) as caught:
        open_runner(model, options, agree=lambda pages: 8)
    error = caught.value
    assert error.what == "KV cache: room for 112 tokens"
    assert "128" in error.why
    assert "context_tokens" in error.fix


@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
def test_a_swap_replaces_the_weights_in_place(tmp_path, weights):
    """
    After the commit the answers are the other model's; before it nothing changes.
    """
    one, other = (write_model(tmp_path / str(seed), seed=seed, **WIDE) for seed in (1, 2))
    wanted = [ask(open_engine(folder, weights=weights)[1]) for folder in (one, other)]
    assert wanted[0] != wanted[1]

    opened, scheduler = open_engine(one, weights=weights)
    finish = opened.prepare(str(other))
    assert ask(scheduler) == wanted[0]
    finish()
    scheduler.allocator.clear()
    assert ask(scheduler) == wanted[1]
    opened.prepare(str(one))()
    scheduler.allocator.clear()
    assert ask(scheduler) == wanted[0]


def test_stale_cache_pages_would_be_noticed(tmp_path):
    """
    Negative control: unless the cache is cleared, the answer is neither model's.
    """
    one, other = (write_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    opened, scheduler = open_engine(one)
    ask(scheduler)
    opened.prepare(str(other))()
    assert ask(scheduler) != ask(open_engine(other)[1])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"intermediate_size": 64}, "intermediate"),
        ({"eos_token_id": 7}, "stop_token_ids"),
        ({"rms_norm_eps": 1e-6}, "norm_eps"),
        ({"max_position_embeddings": 256}, "context_tokens"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, changes, word):
    """
    Of another shape, or with other stop tokens; the old model continues to answer.
    """
    one, other = write_model(tmp_path / "1", seed=1), tmp_path / "2"
    write_model(other, seed=2, **changes)
    opened, scheduler = open_engine(one)
    before = ask(scheduler)

    with pytest.raises(ModelError, match="not a model of the same shape") as caught:
        opened.prepare(str(other))

    assert word in caught.value.why
    assert ask(scheduler) == before


def test_broken_weights_are_refused_before_any_change(tmp_path):
    """
    A truncated file is detected during the read; the old model continues to answer.
    """
    one, other = (write_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    opened, scheduler = open_engine(one)
    before = ask(scheduler)
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])

    with pytest.raises(ModelError):
        opened.prepare(str(other))

    scheduler.allocator.clear()
    assert ask(scheduler) == before


def test_a_missing_gpu_is_an_error(tmp_path, monkeypatch):
    """
    Before anything is read.
    """
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="device: cuda"):
        load_engine(make_load(tmp_path, device="cuda"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_batch_tokens": 250}, {"context_tokens": 100}, {"max_batch_requests": 3}],
)
def test_the_cache_has_the_planned_pages(tmp_path, changes):
    """
    The engine opens with the plan that `python -m runtime check` prints.
    """
    write_model(tmp_path)
    load = make_load(tmp_path, **changes)
    assert load_engine(load).pages == plan_memory(load.options, read_config(tmp_path), None).pages


def test_a_model_that_does_not_fit_the_unit_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch
):
    """
    On a CPU: a process over the limit of its cgroup would be killed while it reads.
    """

    def refuse(*args, **kwargs):
        raise AssertionError("reads weights")

    write_model(tmp_path)
    limit = HostMemory(400 << 20, "/sys/fs/cgroup/unit/memory.max")
    monkeypatch.setattr(device_memory, "read_host_memory", lambda pid: limit)
    monkeypatch.setattr("runtime.engines.paged.load_engine.load_weights", refuse)
    with pytest.raises(ConfigError, match="fit") as caught:
        open_model(make_load(tmp_path))
    assert "unit/memory.max" in caught.value.why


def test_the_cache_is_what_the_unit_leaves(tmp_path, monkeypatch):
    """
    Fewer pages than the rows could hold, and still one request of the whole context.
    """
    write_model(tmp_path, max_position_embeddings=8192, num_hidden_layers=8)
    load = make_load(tmp_path, context_tokens=8192, max_batch_requests=64)
    limit = HostMemory(1 << 30, "memory.max")
    monkeypatch.setattr(device_memory, "read_host_memory", lambda pid: limit)
    plan = plan_memory(load.options, read_config(tmp_path), 1 << 30)
    assert load_engine(load).pages == plan.pages < 1 + 64 * 8192 // 16
