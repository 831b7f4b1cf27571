import re
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, ModelError
from runtime.memory import plan as memory
from runtime.memory.encoder_plan import plan_encoder
from runtime.memory.plan import GIB, plan_memory, step_tokens
from runtime.models.config import DecoderConfig
from tests.unit.runtime.builders import make_config_document


def make_glm(**changes):
    sizes = {
        "architectures": ["GlmForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "head_dim": 128,
        "vocab_size": 151552,
        "num_hidden_layers": 40,
        "max_position_embeddings": 131072,
    }
    return DecoderConfig.from_json(make_config_document(**sizes | changes), "config.json")


GLM = make_glm()
EVEN = make_glm(intermediate_size=14_336)  # whole groups of 128 on up to 8 GPUs; GLM's are not


def make_options(**changes):
    return EngineOptions(**{"device": "cuda", "precision": "bf16"} | changes)


all_options = st.builds(
    make_options,
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
    weights=st.sampled_from(["full", "int8", "int4"]),
    kv=st.sampled_from(["same", "fp8", "int8"]),
    memory_fraction=st.floats(0.1, 0.98),
    context_tokens=st.none() | st.integers(1, 200_000),
    max_batch_tokens=st.none() | st.integers(1, 3_000_000),
    max_batch_requests=st.integers(1, 1024),
    page_tokens=st.sampled_from([16, 32, 64]),
    step_tokens=st.none() | st.integers(16, 32_768),
    gpus=st.sampled_from([1, 2, 4, 8]),
)
sizes = st.integers(4 * GIB, 200 * GIB)


def changes_of(fix):
    """
    Return the changes that each alternative of a *fix* makes.
    """
    answers = fix.removeprefix("set ").split(", or ")
    return [yaml.safe_load("{" + answer.replace(" and ", ", ") + "}") for answer in answers]


def test_the_texts_that_a_decoder_embeds_are_planned():
    """
    One of the whole context is computed at once; a step of a CPU has 512 tokens.
    """
    options = make_options(device="cpu", context_tokens=32_768)
    plain, embeds = (plan_memory(options, GLM, None, embeds=value) for value in (False, True))
    assert embeds.activations > 2 * plain.activations
    short = replace(options, context_tokens=1024)
    assert plan_memory(short, GLM, None, embeds=True).activations < embeds.activations / 8


@pytest.mark.parametrize("gpus", [2, 4])
def test_the_processes_of_a_cpu_are_paid_once(gpus):
    """
    Each shard plans its part of them, in its part of the host: not all of them again.
    """
    options, total = make_options(device="cpu"), 64 * GIB
    whole = plan_memory(options, GLM, total)
    shard = plan_memory(replace(options, gpus=gpus), GLM, total // gpus)
    more = gpus * shard.fixed - whole.fixed
    assert 0 < more < 0.25 * GIB * (gpus - 1)
    assert gpus * shard.total <= total


def try_plan(options, total_bytes):
    try:
        return plan_memory(options, EVEN, total_bytes)
    except ConfigError:
        return None


@given(all_options, sizes)
def test_a_plan_fits_its_budget_or_names_changes_that_fit(options, total_bytes):
    """
    A plan holds a request of the longest context; a refusal has numbers, and each of its fixes
    works.
    """
    plan = try_plan(options, total_bytes)
    if plan is None:
        with pytest.raises(ConfigError) as caught:
            plan_memory(options, EVEN, total_bytes)
        assert len(re.findall(r"\d+\.\d+", caught.value.why)) >= 6
        if "more memory" not in caught.value.fix:
            for change in changes_of(caught.value.fix):
                assert plan_memory(replace(options, **change), EVEN, total_bytes).fits
        return
    assert plan.total <= plan.budget <= total_bytes * options.memory_fraction
    assert plan.total == plan.weights + plan.kv + plan.activations + plan.fixed
    assert plan.requests_of_context >= 1
    assert plan.context_tokens <= min(131_072, options.context_tokens or 131_072)
    if options.max_batch_tokens is not None:
        assert plan.context_tokens <= options.max_batch_tokens
        assert plan.tokens < options.max_batch_tokens + options.page_tokens


@given(all_options, sizes, st.floats(0.1, 0.98))
def test_more_memory_never_holds_less(options, total_bytes, fraction):
    """
    Neither with a larger share nor with a larger GPU.
    """
    low, high = sorted([fraction, options.memory_fraction])
    less, more = (replace(options, memory_fraction=share) for share in (low, high))
    for small, large in (
        ((less, total_bytes), (more, total_bytes)),
        ((options, total_bytes), (options, total_bytes + GIB)),
    ):
        few, many = try_plan(*small), try_plan(*large)
        assert few is None or (many is not None and few.pages <= many.pages)


@given(all_options, sizes)
def test_no_memory_for_another_page_is_unused(options, total_bytes):
    """
    Without max_batch_tokens, the remaining memory is smaller than a page.
    """
    options = replace(options, max_batch_tokens=None)
    plan = try_plan(options, total_bytes)
    if plan is not None:
        longest = -(-plan.context_tokens // plan.page_tokens)
        is_all_that_rows_hold = plan.pages == 1 + options.max_batch_requests * longest
        assert is_all_that_rows_hold or plan.budget - plan.total < plan.kv // plan.pages
        assert plan.pages <= 1 + options.max_batch_requests * longest


def test_the_plan_of_glm_on_a_card_of_80_gib():
    """
    The figures for the model of the benchmarks.
    """
    plan = plan_memory(make_options(), GLM, 80 * GIB)
    assert plan.weights == 18_799_902_720
    assert plan.kv == plan.pages * 64 * 40 * 1024
    assert plan.total <= 72 * GIB
    assert plan.requests_of_context == 10
    assert plan.requests_of(2048) > plan.requests_of(4096) > plan.requests_of_context

    twice = plan_memory(make_options(kv="fp8"), GLM, 80 * GIB)
    assert twice.tokens > 1.99 * plan.tokens
    assert plan_memory(make_options(weights="int8"), GLM, 80 * GIB).weights < 0.6 * plan.weights


def test_a_budget_of_tokens_is_rounded_up_to_pages():
    """
    Page 0, which padding writes to, is added.
    """
    for tokens, pages in ((1, 1), (64, 1), (65, 2), (6400, 100)):
        plan = plan_memory(make_options(max_batch_tokens=tokens), GLM, 80 * GIB)
        assert (plan.pages, plan.tokens) == (1 + pages, 64 * pages)
        assert plan.context_tokens == tokens


def test_without_a_limit_a_cpu_holds_what_its_rows_can():
    """
    The cache holds max_batch_requests of the longest context, or max_batch_tokens.
    """
    options = make_options(
        device="cpu", precision="fp32", max_batch_requests=3, context_tokens=1000
    )
    plan = plan_memory(options, GLM, None)
    assert (plan.budget, plan.pages) == (None, 1 + 3 * 16)
    assert plan.requests_of_context == 3  # each takes whole pages

    few = plan_memory(replace(options, max_batch_tokens=640), GLM, None)
    assert (few.pages, few.context_tokens) == (11, 640)


@given(all_options, sizes)
def test_a_limited_cpu_is_planned_as_a_gpu_is(options, total_bytes):
    """
    A plan fits, or the refusal names changes that fit; never more GPUs.
    """
    options = replace(options, device="cpu", gpus=1)
    plan = try_plan(options, total_bytes)
    if plan is not None:
        assert plan.total <= plan.budget <= total_bytes * options.memory_fraction
        assert plan.requests_of_context >= 1
        return
    with pytest.raises(ConfigError) as caught:
        plan_memory(options, EVEN, total_bytes, "/sys/fs/cgroup/a/memory.max")
    assert "GiB (/sys/fs/cgroup/a/memory.max) is" in caught.value.why
    assert "processes" in caught.value.why
    if not caught.value.fix.startswith("raise memory_max"):
        for change in changes_of(caught.value.fix):
            assert plan_memory(replace(options, **change), EVEN, total_bytes).fits
            assert "gpus" not in change


def test_a_small_model_fits_a_unit_of_3_gib():
    """
    SmolLM2-135M in fp32 with 32 requests of 8192 tokens: the cache of all of them would take 11 GiB
    alone.
    """
    config = make_glm(
        architectures=["LlamaForCausalLM"],
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=49_152,
        num_hidden_layers=30,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attention_bias=False,
    )
    options = make_options(device="cpu", precision="fp32")
    assert plan_memory(options, config, None).kv > 11 * GIB
    plan = plan_memory(options, config, 3 * GIB)
    assert plan.total <= 0.9 * 3 * GIB
    assert 2 <= plan.requests_of_context <= 4
    with pytest.raises(ConfigError, match="one request of 8192 tokens does not fit"):
        plan_memory(options, config, int(1.9 * GIB))


def test_an_encoder_is_held_against_the_same_limit():
    """
    Weights and the largest batch, beside the runtime's processes.
    """
    shape = {"parameters": 22_713_216, "hidden": 384, "intermediate": 1536, "context_tokens": 512}
    options = make_options(device="cpu", precision="fp32")

    def plan(total_bytes):
        return plan_encoder(
            options, **shape, vocabulary=30_522, total_bytes=total_bytes, limit="memory.max"
        )

    assert plan(None).fits
    assert plan(2 * GIB).total <= 1.8 * GIB
    with pytest.raises(ConfigError, match="the encoder does not fit") as caught:
        plan(GIB // 2)
    assert "memory_fraction 0.9 of 0.5 GiB (memory.max) is 0.45" in caught.value.why
    assert "raise memory_max" in caught.value.fix


def test_a_step_has_room_for_the_decode_of_every_row_and_more():
    """
    The default is 8192 tokens on a GPU and 512 on a CPU.
    """
    assert step_tokens(make_options()) == 8192
    assert step_tokens(make_options(device="cpu")) == 512
    assert step_tokens(make_options(step_tokens=100)) == 100
    assert step_tokens(make_options(step_tokens=16, max_batch_requests=64)) > 64


def test_several_gpus_share_the_weights_and_each_reserves_nccl_buffers():
    """
    Four GPUs hold each of two KV heads twice.
    """
    one, two, four = (plan_memory(make_options(gpus=n), GLM, 80 * GIB) for n in (1, 2, 4))
    assert one.weights / 2 < two.weights < one.weights * 0.6
    assert two.fixed - one.fixed == memory.PEER_BYTES
    assert two.kv // two.pages == four.kv // four.pages == one.kv // one.pages // 2


@pytest.mark.parametrize(
    ("changes", "total_gib", "words"),
    [
        ({}, 23, ("131072 tokens", "0.9 of 23.0 GiB", "17.51", "5.00", "context_tokens: ")),
        ({}, 26.5, ("memory_fraction: 0.9", "kv: fp8", "weights: int8", "step_tokens: 1024")),
        ({"memory_fraction": 0.3}, 80, ("memory_fraction: 0.31", "context_tokens: ")),
        ({}, 18, ("nothing remains", "weights: int8 and kv: fp8", "gpus: 2")),
        ({"context_tokens": 32_768}, 19, ("32768 tokens", "weights: int8")),
        ({"precision": "fp32"}, 36, ("35.02", "precision: bf16")),
        ({"gpus": 8, "weights": "int8"}, 2, ("nothing remains", "a GPU with more memory")),
    ],
)
def test_a_refusal_names_the_missing_memory_and_the_fixes(monkeypatch, changes, total_gib, words):
    """
    What, why with numbers in GiB, and the keys to change.
    """
    monkeypatch.setattr(memory, "CONTEXT_BYTES", int(0.6 * GIB))  # whatever is measured next
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", int(0.3 * GIB))
    with pytest.raises(ConfigError) as caught:
        plan_memory(make_options(**changes), GLM, total_gib * GIB)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if changes.get("precision") == "fp32":
        assert "weights: int8" not in caught.value.fix  # the configuration refuses that


@pytest.mark.parametrize(
    ("changes", "shape", "words"),
    [
        ({"gpus": 3}, {}, "can't be sharded"),
        ({"weights": "int4"}, {"intermediate_size": 13_697}, "rows of 13697"),
        ({"weights": "int4", "gpus": 4}, {"intermediate_size": 4 * 1_000}, "rows of 1000"),
    ],
)
def test_an_uneven_division_is_refused(changes, shape, words):
    """
    A number of GPUs that does not divide the model, or 4 bits with partial groups.
    """
    config = make_glm(**shape)
    plan_memory(make_options(), config, 80 * GIB)  # negative control
    with pytest.raises(ModelError, match=words):
        plan_memory(make_options(**changes), config, 80 * GIB)
