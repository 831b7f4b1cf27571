"""
Model directories that no start may accept, each broken in one way.
"""

import json
import os

import torch
from safetensors.torch import load_file, save_file

from tests.unit.runtime.builders import write_model

WEIGHTS = "model.safetensors"
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4}
KINDS = {}


def kind(break_it):
    """
    Register a function that breaks the model in a directory; its name is the kind.
    """
    KINDS[break_it.__name__] = break_it
    return break_it


def write_broken(folder, name):
    """
    Write a small model and break it; `whole` leaves it whole.
    """
    write_model(folder, **SMALL)
    if name != "whole":
        KINDS[name](folder)
    return folder


def change_json(path, **changes):
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def write_header(folder, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def header_of(folder):
    raw = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


@kind
def missing_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop("model.norm.weight") is None or tensors)


@kind
def extra_tensor(folder):
    change_tensors(folder, lambda tensors: tensors | {"model.other.weight": torch.zeros(2)})


@kind
def misshaped_tensor(folder):
    change_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.zeros(3)})


@kind
def wrong_hidden_size(folder):
    change_json(folder / "config.json", hidden_size=32)


@kind
def fp8_weights(folder):
    name = "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda all: all | {name: all[name].to(torch.float8_e4m3fn)})


@kind
def truncated_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


@kind
def weights_with_a_tail(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0")


@kind
def empty_weights(folder):
    (folder / WEIGHTS).write_bytes(b"")


@kind
def header_longer_than_the_file(folder):
    (folder / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")


@kind
def header_of_no_json(folder):
    write_header(folder, b"{" * 100_000)


@kind
def header_that_is_a_list(folder):
    write_header(folder, [])


@kind
def header_with_overlapping_tensors(folder):
    header, data = header_of(folder)
    first, second, *_ = (name for name in header if name != "__metadata__")
    header[second]["data_offsets"] = header[first]["data_offsets"]
    write_header(folder, header, data)


@kind
def header_with_fractions(folder):
    header, data = header_of(folder)
    entry = header["model.norm.weight"]
    entry["shape"] = [float(size) for size in entry["shape"]]
    write_header(folder, header, data)


@kind
def header_with_the_wrong_size(folder):
    header, data = header_of(folder)
    header["model.norm.weight"]["dtype"] = "BF16"
    write_header(folder, header, data)


@kind
def no_weights(folder):
    (folder / WEIGHTS).unlink()


@kind
def weights_are_a_directory(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


@kind
def weights_are_a_pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@kind
def weights_in_a_loop_of_links(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


@kind
def index_with_an_absent_shard(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')


@kind
def index_that_leaves_the_directory(folder):
    document = {"weight_map": {"a": f"../{folder.name}/{WEIGHTS}"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


@kind
def index_of_numbers(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": [1]}}')


@kind
def index_without_a_map(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


@kind
def no_config(folder):
    (folder / "config.json").unlink()


@kind
def config_of_no_json(folder):
    (folder / "config.json").write_text("{")


@kind
def config_of_bytes(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe")


@kind
def config_that_is_deep(folder):
    (folder / "config.json").write_text("[" * 200_000)


@kind
def config_in_a_loop_of_links(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


@kind
def config_of_another_architecture(folder):
    change_json(folder / "config.json", architectures=["BertForMaskedLM"])


@kind
def config_with_a_strange_architecture(folder):
    change_json(folder / "config.json", architectures=[{"name": 1}])


@kind
def config_with_nan(folder):
    change_json(folder / "config.json", hidden_size=float("nan"))


@kind
def config_with_infinity(folder):
    change_json(folder / "config.json", num_hidden_layers=float("inf"))


@kind
def config_with_a_huge_number(folder):
    change_json(folder / "config.json", num_hidden_layers=10**30)


@kind
def config_with_a_text_for_a_number(folder):
    change_json(folder / "config.json", vocab_size="many")


@kind
def config_with_a_strange_rope(folder):
    change_json(folder / "config.json", rope_scaling=[1])


@kind
def config_with_a_rotation_for_each_kind_of_layer(folder):
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1.0}}
    change_json(folder / "config.json", rope_parameters=rope)


@kind
def config_that_rotates_more_than_a_head(folder):
    change_json(folder / "config.json", partial_rotary_factor=3.0)


@kind
def config_with_a_number_that_no_float_holds(folder):
    change_json(folder / "config.json", rope_theta=10**350)


@kind
def config_with_matrices_that_nothing_holds(folder):
    change_json(folder / "config.json", hidden_size=2**31 - 1, vocab_size=2**31 - 1)


@kind
def config_with_a_flag_in_words(folder):
    change_json(folder / "config.json", tie_word_embeddings="false")


@kind
def config_with_quantized_weights(folder):
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


@kind
def header_in_utf_16(folder):
    header, data = header_of(folder)
    write_header(folder, json.dumps(header).encode("utf-16"), data)


@kind
def config_with_strange_stop_tokens(folder):
    change_json(folder / "config.json", eos_token_id={"a": 1})


@kind
def heads_that_do_not_divide(folder):
    change_json(folder / "config.json", num_key_value_heads=3)


@kind
def generation_config_of_no_json(folder):
    (folder / "generation_config.json").write_text("nonsense")


@kind
def generation_config_with_strange_stop_tokens(folder):
    change_json(folder / "generation_config.json", eos_token_id=[[1], "two"])


@kind
def generation_config_is_a_directory(folder):
    (folder / "generation_config.json").mkdir()


@kind
def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


@kind
def tokenizer_of_no_json(folder):
    (folder / "tokenizer.json").write_text("{")


@kind
def tokenizer_without_a_model(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


@kind
def tokenizer_without_tokens(folder):
    document = json.loads((folder / "tokenizer.json").read_text())
    change_json(folder / "tokenizer.json", model=document["model"] | {"vocab": {}})


@kind
def tokenizer_that_adds_a_token_without_a_row(folder):
    first = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"[CLS]": {"id": "[CLS]", "ids": [4_000_000], "tokens": ["[CLS]"]}}
    processor = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text]}
    change_json(folder / "tokenizer.json", post_processor=processor | {"special_tokens": special})


@kind
def tokenizer_that_drops_every_text(folder):
    normalizer = {"type": "Replace", "pattern": {"Regex": ".*"}, "content": ""}
    change_json(folder / "tokenizer.json", normalizer=normalizer)


@kind
def special_token_of_half_a_pair(folder):
    change_json(folder / "tokenizer_config.json", eos_token="\ud800")


@kind
def added_token_of_half_a_pair(folder):
    tokens = {"95": {"content": "\udfff"}}
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=tokens)


@kind
def tokenizer_is_a_directory(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


@kind
def tokenizer_is_a_pipe(folder):
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")


@kind
def tokenizer_config_of_no_json(folder):
    (folder / "tokenizer_config.json").write_text("[")


@kind
def special_token_of_the_wrong_form(folder):
    change_json(folder / "tokenizer_config.json", eos_token=5)


@kind
def extra_special_tokens_of_the_wrong_form(folder):
    change_json(folder / "tokenizer_config.json", additional_special_tokens=["<a>", 5])


@kind
def added_tokens_of_the_wrong_form(folder):
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={"1": "a"})


@kind
def added_token_with_another_id(folder):
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={"7": {"content": "<new>"}})


@kind
def old_map_of_tokens_of_the_wrong_form(folder):
    change_json(folder / "special_tokens_map.json", bos_token=["x"])


@kind
def template_with_a_syntax_error(folder):
    (folder / "chat_template.jinja").write_text("{% for %}")


@kind
def template_with_an_unknown_filter(folder):
    (folder / "chat_template.jinja").write_text("{{ messages | strange }}")


@kind
def template_of_bytes(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")


@kind
def template_link_to_nothing(folder):
    (folder / "chat_template.jinja").symlink_to("gone")


@kind
def templates_without_a_default(folder):
    templates = [{"name": "rag", "template": "x"}]
    change_json(folder / "tokenizer_config.json", chat_template=templates)


@kind
def additional_templates_alone(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x")


@kind
def pooling_of_no_json(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{")


@kind
def pooling_of_an_unknown_kind(folder):
    (folder / "1_Pooling").mkdir()
    change_json(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)


@kind
def embeddings_of_more_dimensions_than_there_are(folder):
    (folder / "1_Pooling").mkdir()
    change_json(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True)
    change_json(folder / "config.json", matryoshka_dimensions=[8, 17])


@kind
def encoder_with_the_weights_of_a_decoder(folder):
    change_json(folder / "config.json", architectures=["BertModel"])


@kind
def encoder_with_strange_numbers(folder):
    change_json(folder / "config.json", architectures=["BertModel"], hidden_size=[])
