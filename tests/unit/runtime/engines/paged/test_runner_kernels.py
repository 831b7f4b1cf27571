"""
The GPU's runner with its kernels, in Triton's interpreter: chunks, prefixes and decodes.

`tests/gpu/test_runner.py` tests it on a GPU, with graphs, at real sizes.
"""

import copy

import pytest
import torch

from runtime.engines.paged import runner as runner_module
from runtime.engines.paged.step import Chunk, Decode, Step
from runtime.kernels.ops import TorchOps
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder, attend_causal
from tests.unit.runtime.builders import make_config_document
from tests.unit.runtime.requests import make_join

PAGE, ROWS, TOLERANCE = 16, 3, {"same": 0.01, "int8": 0.03}


@pytest.fixture
def poisoned():
    """
    Fill all new memory with NaN.
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def make_runner(monkeypatch, poisoned):
    """
    Return a function that makes a runner with kernels for a model.
    """
    fused = pytest.importorskip("runtime.kernels.fused")
    from runtime.kernels.attention.decode import Workspace

    ops = fused.FusedOps.__new__(fused.FusedOps)
    ops.pdl, ops._multiprocessors = False, 3
    monkeypatch.setattr(runner_module, "ops_for", lambda device: ops)

    def make(model, kv):
        runner = runner_module.PagedRunner(
            model,
            slots=ROWS,
            pages=1 + 8 * ROWS,
            page_tokens=PAGE,
            row_pages=8,
            kv_dtype=torch.int8 if kv == "int8" else None,
        )
        layer = model.layers[0]
        group, dim = layer.heads // layer.kv_heads, model.config.head_dim
        runner._workspace = Workspace(ROWS, layer.kv_heads, group, dim, torch.device("cpu"))
        return runner

    return make


def make_model(name):
    document = make_config_document(
        architectures=[name],
        attention_bias="Glm" in name,
        hidden_size=64,
        num_attention_heads=6,
        head_dim=16,
        intermediate_size=96,
        vocab_size=208,
        num_hidden_layers=2,
    )
    config = DecoderConfig.from_json(document, "config.json")
    torch.manual_seed(0)
    model = Decoder(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.half().requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        ("GlmForCausalLM", "same"),
        ("Glm4ForCausalLM", "int8"),
        ("LlamaForCausalLM", "same"),
        ("Qwen3ForCausalLM", "same"),
        ("Qwen3ForCausalLM", "int8"),
    ],
)
def test_every_kind_of_step_matches_the_reference(make_runner, name, kv):
    """
    A prompt in two chunks, one beside decodes; then decodes alone, where the longest row is not the
    first.
    """
    model = make_model(name)
    reference = copy.deepcopy(model).float()
    reference.ops = TorchOps()
    runner = make_runner(model, kv)
    rows = [list(range(5, 5 + length)) for length in (7, 40, 19)]
    pages = [tuple(range(1 + 8 * slot, 9 + 8 * slot)) for slot in range(ROWS)]
    joins = [make_join(slot, pages[slot], 0.0, 1.0, slot) for slot in range(ROWS)]
    computed = []
    sample = runner._sample
    runner._sample = lambda logits, *rest: (computed.append(logits.clone()), sample(logits, *rest))

    def run(step):
        outcome = runner.launch(step).collect()
        assert all(outcome.is_finite)
        for slot, token, logits in zip(step.sampled, outcome.tokens, computed.pop(), strict=True):
            row_tokens = torch.tensor(rows[slot])
            at = torch.arange(len(row_tokens))
            wanted = reference(row_tokens, at, attend_causal(1), at[-1:])[0]
            assert (logits - wanted).norm() / wanted.norm() < TOLERANCE[kv]
            rows[slot].append(token)

    chunks = (Chunk(0, 0, rows[0][:], True), Chunk(1, 0, rows[1][:21], False))
    run(Step(tuple(joins[:2]), (), chunks))
    chunks = (Chunk(1, 21, rows[1][21:], True), Chunk(2, 0, rows[2][:], True))
    run(Step((joins[2],), (Decode(0, 7),), chunks))
    for _ in range(3):
        run(Step((), tuple(Decode(slot, len(rows[slot]) - 1) for slot in range(ROWS)), ()))
