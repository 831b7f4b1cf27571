import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.contract.errors import ModelError
from runtime.kernels.quantize import dequantize, empty_quantized
from runtime.models import read_plan as reads
from runtime.models.decoder import Decoder, attend_causal
from runtime.models.families import FAMILIES
from runtime.models.loader import check_device, load_model, load_weights, read_config, stage
from runtime.models.shard import WHOLE, Shard
from runtime.models.weights import gather, sources
from tests.unit.runtime.builders import make_config_document, write_model

ROOT = Path(__file__).parents[4]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def load(folder, **changes):
    return load_model(folder, **{"device": "cpu", "precision": "fp32"} | changes)


def make_blank_parameters(config, device="cpu", dtype=torch.float32, shard=WHOLE):
    """
    Return parameters filled with a marker that shows which values were written.
    """
    return {
        name: torch.full(source.shape, 7.5, dtype=dtype, device=device)
        for name, source in sources(config, shard).items()
    }


def expected(folder, config, shard=WHOLE):
    tensors = load_file(folder / "model.safetensors")
    return dict(gather(config, tensors.__getitem__, shard))


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def small_reads(monkeypatch):
    """
    Tiny tensors take several reads, as large ones do.
    """
    monkeypatch.setattr(reads, "READ_BYTES", 700)


def write_family(folder, name, **changes):
    rope = {"mrope_section": [1, 2, 1]}
    changes = {"rope_scaling": rope, "attention_bias": False} | changes
    return write_model(folder, architectures=[name], **changes)


def rewrite_config(folder, **changes):
    document = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in document.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["load", "stage"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_value_is_loaded_into_its_place(tmp_path, name, way, dtype, device):
    """
    In several reads, reordered and converted, directly or staged.
    """
    folder = write_family(tmp_path, name)
    config = read_config(folder)
    parameters = make_blank_parameters(config, device, dtype)
    if way == "load":
        done = load_weights(folder, config, parameters)
    else:
        staged = stage(folder, config, parameters)
        assert all((tensor == 7.5).all() for tensor in parameters.values())  # not touched yet
        done = staged.commit()
        assert done.size_bytes == staged.read.size_bytes
    wanted = expected(folder, config)
    for key, tensor in parameters.items():
        assert torch.equal(tensor.cpu(), wanted[key].to(dtype)), key
    assert done.size_bytes == 4 * sum(tensor.numel() for tensor in wanted.values())
    assert done.gb_per_s > 0


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["load", "stage"])
@pytest.mark.parametrize("name", ["Glm4ForCausalLM", "Qwen2ForCausalLM"])
def test_a_shard_loads_its_part(tmp_path, name, way, device):
    """
    Rows and columns of each tensor, directly or staged.
    """
    folder = write_family(tmp_path, name, vocab_size=300)
    config = read_config(folder)
    for shard in (Shard(0, 4), Shard(3, 4)):
        parameters = make_blank_parameters(config, device, shard=shard)
        if way == "load":
            load_weights(folder, config, parameters, shard)
        else:
            stage(folder, config, parameters, shard).commit()
        wanted = expected(folder, config, shard)
        assert all(torch.equal(tensor.cpu(), wanted[key]) for key, tensor in parameters.items())


@pytest.mark.usefixtures("small_reads")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["load", "stage"])
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_quantised_while_loading(tmp_path, bits, way, device):
    """
    With the result of quantising the whole tensor; other tensors are unchanged.
    """
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    folder = write_family(tmp_path, "LlamaForCausalLM", **sizes)
    config = read_config(folder)
    parameters = make_blank_parameters(config, device)
    kinds = ("qkv", "out", "gate_up", "down")
    scale = torch.float32 if bits == 8 else torch.bfloat16
    for key, tensor in parameters.items():
        if key.endswith(kinds):
            parameters[key] = empty_quantized(*tensor.shape, bits, scale=scale, device=device)
    if way == "load":
        load_weights(folder, config, parameters)
    else:
        stage(folder, config, parameters).commit()
    for key, tensor in expected(folder, config).items():
        if key.endswith(kinds):
            error = (dequantize(parameters[key], torch.float32).cpu() - tensor).abs()
            scales = parameters[key].scale.float().cpu()
            scales = scales[:, None] if bits == 8 else scales.repeat_interleave(128, dim=1)
            assert (error <= scales * 0.501).all(), key
        else:
            assert torch.equal(parameters[key].cpu(), tensor), key


def test_weights_are_replaced_in_the_same_memory(folder, tmp_path):
    """
    Users of their addresses, such as CUDA graphs, continue to work.
    """
    model, config = load(folder)
    parameters = dict(model.named_parameters())
    addresses = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    other = write_model(tmp_path / "other", seed=1)
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    load_weights(other, read_config(other), parameters)

    wanted = expected(other, config)
    assert all(torch.equal(parameters[name], wanted[name]) for name in wanted)
    assert not torch.equal(parameters["head"], before["head"])  # negative control
    assert {name: parameter.data_ptr() for name, parameter in parameters.items()} == addresses


@pytest.mark.parametrize("fill", [load_weights, stage])
def test_a_bad_directory_leaves_the_weights_unchanged(folder, tmp_path, fill):
    """
    All checks run before the first write.
    """

    def cut(path):
        path.write_bytes(path.read_bytes()[:-1])

    def lose(path):
        tensors = load_file(path)
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, path)

    model, _ = load(folder)
    parameters = dict(model.named_parameters())
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    for number, spoil in enumerate((cut, lose, Path.unlink)):
        other = write_model(tmp_path / f"{number}", seed=1)
        config = read_config(other)
        spoil(other / "model.safetensors")
        with pytest.raises(ModelError):
            fill(other, config, parameters)
    assert all(torch.equal(parameters[name], before[name]) for name in before)


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    """
    The directory is valid, but not for these parameters.
    """
    model, _ = load(folder)
    other = write_model(tmp_path / "other", intermediate_size=64)
    with pytest.raises(ModelError, match="does not fit") as caught:
        load_weights(other, read_config(other), dict(model.named_parameters()))
    assert "layers.0.down is (32, 48) in memory, (32, 64) in the files" in caught.value.why


def test_a_file_truncated_during_the_read_is_named(folder, monkeypatch):
    """
    All reading threads stop.
    """
    config = read_config(folder)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(ModelError, match="can't be read") as caught:
        load_weights(folder, config, make_blank_parameters(config))
    assert "truncated while it was read" in caught.value.why


def test_short_reads_are_continued(folder, monkeypatch):
    """
    The kernel may return fewer bytes than requested.
    """
    config, whole = read_config(folder), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:1000]], at))
    parameters = make_blank_parameters(config)
    load_weights(folder, config, parameters)
    wanted = expected(folder, config)
    assert all(torch.equal(parameters[name], wanted[name]) for name in wanted)


MEASURE = """
import sys
import torch
from runtime.models import loader, read_plan as reads
from runtime.models.weights import sources

def kib(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1])

torch.set_num_threads(1)
reads.READ_BYTES = 2**20
config = loader.read_config(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
shapes = {name: source.shape for name, source in sources(config).items()}
room = {name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()}
before = kib("VmRSS")
loaded = loader.load_weights(sys.argv[1], config, room)
extra = kib("VmHWM") - before
print(loaded.size_bytes >> 10, extra)
unwanted = {"safetensors", "pydantic", "yaml", "transformers", "triton"} & set(sys.modules)
assert not unwanted, unwanted
assert not any(tensor.any() for tensor in room.values())
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_model_is_never_in_memory_twice(tmp_path, dtype):
    """
    Loading takes a few buffers beside the model, also if it reorders and converts, and imports only
    torch and numpy.
    """
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 256}
    write_blank(tmp_path, num_hidden_layers=4, attention_bias=False, **sizes)
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, dtype],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    model_kib, extra_kib = map(int, process.stdout.split())
    assert model_kib > 100 * 1024
    assert extra_kib < model_kib / 2, (model_kib, extra_kib)


def write_blank(folder, **changes):
    """
    Write a Llama of zeros as a sparse file.
    """
    document = make_config_document(architectures=["LlamaForCausalLM"], **changes)
    (folder / "config.json").write_text(json.dumps(document))
    header, at = {}, 0
    for source in sources(read_config(folder)).values():
        for piece in source.pieces:
            end = at + 2 * math.prod(piece.shape)
            entry = {"dtype": "BF16", "shape": piece.shape, "data_offsets": [at, end]}
            header[piece.name], at = entry, end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def test_weights_have_the_requested_precision(folder):
    """
    Every weight is converted.
    """
    model, _ = load(folder, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_trainable_parameters_can_be_loaded(folder):
    """
    They stay trainable: autograd does not record the load.
    """
    config = read_config(folder)
    model = Decoder(config)
    load_weights(folder, config, dict(model.named_parameters()))
    model(torch.tensor([1, 2]), torch.arange(2), attend_causal(1)).sum().backward()
    assert model.embedding.grad.abs().sum() > 0


def test_the_generation_config_overrides_the_stop_tokens(folder):
    """
    Its stop tokens replace those of config.json.
    """
    rewrite_config(folder, eos_token_id=5)
    assert read_config(folder).stop_token_ids == {5}
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert read_config(folder).stop_token_ids == {7, 8}
    (folder / "generation_config.json").write_text("{}")
    assert read_config(folder).stop_token_ids == {5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MistralForCausalLM"]}, ("architectures", "MistralForCausalLM")),
        ({"hidden_size": ...}, ("config.json", "hidden_size", "missing")),
        ({"intermediate_size": 40}, ("gate_up_proj", "[96, 32]", "[80, 32]")),
        ({"num_hidden_layers": 3}, ("layers.2", "is missing")),
        ({"num_hidden_layers": 1}, ("layers.1", "not part of this architecture")),
        ({"architectures": ["GlmForCausalLM"]}, ("post_mlp_layernorm", "not part")),
    ],
)
def test_a_mismatch_of_config_and_weights_is_named(folder, changes, words):
    """
    The error has the key or the tensor, and its value.
    """
    load(folder)  # negative control
    rewrite_config(folder, **changes)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unsupported_type_is_named(folder):
    """
    Such as a checkpoint that is already quantised.
    """
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"lm_head\.weight is of type F8_E4M3"):
        load(folder)


def test_a_missing_shard_is_named(folder):
    """
    The index names a file that does not exist.
    """
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        load(folder)


def test_a_tied_model_may_repeat_its_embedding(tmp_path):
    """
    Some files contain lm_head.weight although the config ties it to the embedding.
    """
    folder = write_model(tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder)[0].head is None


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_model_that_was_saved_without_its_head_has_no_prefix(tmp_path, is_tied):
    """
    As Qwen3-Embedding is published.
    """
    folder = write_family(tmp_path / "model", "Qwen3ForCausalLM", tie_word_embeddings=is_tied)
    model, _ = load(folder)
    tensors = load_file(folder / "model.safetensors")
    flat = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(flat, folder / "model.safetensors")
    again, _ = load(folder)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name

    flat.pop("norm.weight")
    save_file(flat, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        load(folder)


def test_vision_tensors_are_ignored(tmp_path):
    """
    In a vision model's file; in another family they are refused.
    """
    for name in ("Glm4vForConditionalGeneration", "Glm4ForCausalLM"):
        folder = write_family(tmp_path / name, name)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.visual.patch_embed.proj.bias"] = torch.ones(3)
        save_file(tensors, folder / "model.safetensors")
        if name.startswith("Glm4v"):
            load(folder)
        else:
            with pytest.raises(ModelError, match="patch_embed"):
                load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(folder):
    """
    The error names device: cuda.
    """
    with pytest.raises(ModelError, match="device: cuda"):
        load(folder, device="cuda")


@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "torch sees no GPU"), ("7", "torch sees no GPU; CUDA_VISIBLE_DEVICES is '7'")],
)
def test_what_hides_the_gpus_is_named(monkeypatch, value, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(ModelError) as caught:
        check_device("cuda")
    assert caught.value.why == why
