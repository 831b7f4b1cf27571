import ctypes
import json
import os
import struct
from contextlib import contextmanager

import pytest

from deploy.bundle.model import check_golden, check_model
from deploy.errors import ModelPathError
from tests.unit.deploy.bundle.builders import GOLDEN, make_model, make_shards, safetensors


@contextmanager
def as_nobody():
    """
    Access files as the user nobody, in this thread.
    """
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(0)


def refusal(path):
    with pytest.raises(ModelPathError) as caught:
        check_model(path)
    return caught.value


def test_a_model_is_its_configuration_tokenizer_and_weights(tmp_path):
    """
    And those optional files that it has.
    """
    model = make_model(tmp_path / "m")
    (model / "generation_config.json").write_text("{}")
    (model / "README.md").write_text("not needed")

    assert check_model(model) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_a_model_has_what_its_chat_needs(tmp_path):
    """
    Templates and special tokens are part of a bundle's digest, as the weights are.
    """
    model = make_model(tmp_path / "m")
    (model / "additional_chat_templates").mkdir()
    names = ["additional_chat_templates/tool_use.jinja", "chat_template.jinja"]
    for name in names:
        (model / name).write_text("{{ messages }}")
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    (model / "additional_chat_templates" / "README.md").write_text("not needed")

    assert check_model(model) == [
        *names, "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer_config.json", b"{", "not JSON"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template: should be a text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "[0].template"),
        ("tokenizer_config.json", b'{"chat_template": "\\ud800"}', "surrogate"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "rag", "template": "x"}]}',
            "no template 'default' among rag",
        ),
        ("tokenizer_config.json", b'{"eos_token": 5}', "tokenizer_config.json: eos_token"),
        ("tokenizer_config.json", b'{"eos_token": {"id": 5}}', "eos_token: should be a text"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"a": {}}}', "'a' is not a token id"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "added_tokens_decoder"),
        ("special_tokens_map.json", b'{"bos_token": ["x"]}', "special_tokens_map.json: bos_token"),
        ("tokenizer_config.json", b'{"extra_special_tokens": [5]}', "extra_special_tokens[0]"),
        ("additional_chat_templates/tool_use.jinja", b"x", "no template 'default' among tool_use"),
        ("chat_template.jinja", b"a\n{% for %}", "line 2"),
        ("chat_template.jinja", b"{{ messages | strange }}", "No filter named 'strange'"),
        ("tokenizer_config.json", b'{"chat_template": "{{"}', "line 1"),
        ("special_tokens_map.json", b"nothing", "not JSON"),
        ("generation_config.json", b'"text"', "not a JSON object"),
        ("chat_template.jinja", b"\xff", "not a template"),
        ("chat_template.jinja", b"x" * (1 << 20) + b"x", "more than 1048576 bytes"),
        ("additional_chat_templates/a b.jinja", b"", "its name"),
        ("additional_chat_templates/tool_use.jinja", b"\xff", "tool_use.jinja is not a template"),
    ],
)
def test_a_chat_file_that_the_runtime_would_refuse_is_refused(tmp_path, name, content, why):
    model = make_model(tmp_path / "m")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(content)

    error = refusal(model)

    assert name.rpartition("/")[2] in error.why
    assert why in error.why


def test_many_additional_templates_are_refused(tmp_path):
    model = make_model(tmp_path / "m")
    (model / "additional_chat_templates").mkdir()
    for number in range(16):
        (model / "additional_chat_templates" / f"t{number}.jinja").write_text("")

    assert "16 templates; 15 at most" in refusal(model).why


def test_a_model_in_shards_is_its_index_and_every_shard(tmp_path):
    """
    The layout of large models.
    """
    assert check_model(make_shards(tmp_path / "m")) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_a_missing_path_names_its_missing_part(tmp_path):
    """
    "not found", and the first part that does not exist.
    """
    error = refusal(tmp_path / "modles" / "tiny")

    assert error.what.endswith("not found")
    assert error.why == f"{tmp_path} has no 'modles'"
    assert error.exit_code == 16


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_path_without_permission_names_the_directory(tmp_path):
    """
    "no permission", and the directory that refuses.
    """
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    private = tmp_path / "private"
    model = make_model(private / "m")
    private.chmod(0o700)

    with as_nobody():
        error = refusal(model)

    assert error.what.endswith("no permission")
    assert str(private) in error.why


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_file_without_permission_is_named(tmp_path):
    """
    One file of the model is private.
    """
    for parent in (tmp_path, *tmp_path.parents):
        if parent.name.startswith(("pytest-", "popen-", tmp_path.name)):
            parent.chmod(0o755)
    model = make_model(tmp_path / "m")
    (model / "model.safetensors").chmod(0o600)

    with as_nobody():
        error = refusal(model)

    assert error.what.endswith("no permission")
    assert "model.safetensors" in error.why


def without(name):
    return lambda model: (model / name).unlink()


def golden(**changes):
    """
    Return a line of golden.jsonl with *changes*.
    """
    return json.dumps(GOLDEN | changes) + "\n"


def chat(**changes):
    """
    Return a line of golden.jsonl that is a conversation, with *changes*.
    """
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"messages": messages, "max_tokens": 4, "expected": "x"} | changes) + "\n"


def test_conversations_are_golden_prompts_too(tmp_path):
    """
    With tools and schemas; the expected answer is a text or calls.
    """
    call = {"name": "f", "arguments": {"x": 1}}
    lines = [chat(), chat(tools=[{}], response_format={}, expected=[call]), golden()]
    model = make_model(tmp_path / "m")
    (model / "golden.jsonl").write_text("".join(lines))
    assert check_golden(model) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_feed_ends_a_golden_prompt(tmp_path, end):
    """
    JSON leaves NEL, U+2028 and U+2029 in a text as they are: models answer with them.
    """
    model = make_model(tmp_path / "m")
    line = json.dumps(GOLDEN | {"expected": "a\u0085b\u2028c\u2029d"}, ensure_ascii=False)
    (model / "golden.jsonl").write_bytes(f"{line}{end}{line}".encode())

    assert check_golden(model) == 2


def encode(name, encoding):
    return lambda model: (model / name).write_bytes((model / name).read_text().encode(encoding))


def grow(name):
    return lambda model: (model / name).write_bytes((model / name).read_bytes() + b"\0")


def place(*places):
    """
    Write weights whose tensors lie at *places*, each begin and end, in 64 bytes.
    """
    entries = {
        f"w{number}": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for number, (begin, end) in enumerate(places)
    }
    header = json.dumps(entries).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(64)
    return lambda model: (model / "model.safetensors").write_bytes(data)


def write(name, text):
    return lambda model: (model / name).write_text(text)


def cut(name, size):
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), "config.json is missing"),
        (write("config.json", "{"), "config.json is not JSON"),
        (write("config.json", "[]"), "config.json is not a JSON object"),
        (write("config.json", "{}"), "no model_type"),
        (without("tokenizer.json"), "tokenizer.json is missing"),
        (write("tokenizer.json", "nope"), "tokenizer.json is not JSON"),
        (without("model.safetensors"), "model.safetensors is missing"),
        (write("model.safetensors", "x" * 99), "no safetensors header"),
        (write("model.safetensors", ""), "no safetensors header"),
        (cut("model.safetensors", 40), "cut off: it has 40 of"),
        (cut("model.safetensors", -1), "is cut off"),
        (grow("model.safetensors"), "1 bytes belong to no tensor"),
        (place((0, 32), (40, 64)), "a tensor lies at 40 to 64, after 32 bytes"),
        (place((0, 64), (32, 64)), "a tensor lies at 32 to 64, after 64 bytes"),
        (place((0, 64), (64, 8)), "a tensor lies at 64 to 8"),
        (encode("config.json", "utf-8-sig"), "config.json is not JSON"),
        (encode("tokenizer.json", "utf-16"), "tokenizer.json is not JSON"),
        (without("golden.jsonl"), "golden.jsonl is missing"),
        (write("golden.jsonl", ""), "golden.jsonl is empty"),
        (write("golden.jsonl", "{}\n"), "golden.jsonl, line 1"),
        (write("golden.jsonl", "{\n"), "not JSON"),
        (write("golden.jsonl", golden(prompt=5)), "line 1: prompt is 5"),
        (write("golden.jsonl", golden(tools=[])), "'tools' is no key"),
        (write("golden.jsonl", golden(max_tokens=True)), "max_tokens is True"),
        (write("golden.jsonl", golden(max_tokens=0)), "max_tokens should be from 1"),
        (write("golden.jsonl", golden(max_tokens=10**30)), "max_tokens should be from 1"),
        (write("golden.jsonl", chat(max_tokens=-1)), "max_tokens should be from 1"),
        (write("golden.jsonl", golden(prompt="\ud83d")), "half of a surrogate pair"),
        (write("golden.jsonl", chat(messages=[{"x": float("nan")}])), "NaN is no number"),
        (write("golden.jsonl", golden(expected=[])), "expected is []"),
        (write("golden.jsonl", chat(messages=[])), "messages should be a list"),
        (write("golden.jsonl", chat(messages=["x"])), "messages should be a list"),
        (write("golden.jsonl", chat(prompt="x")), "'prompt' is no key"),
        (write("golden.jsonl", chat(expected=None)), "expected is None"),
        (write("golden.jsonl", chat(expected=[])), "one or more calls"),
        (write("golden.jsonl", chat(expected=[{"name": "f"}])), "exactly name, arguments"),
        (write("golden.jsonl", chat(expected=[{"name": 5, "arguments": {}}])), "name is 5"),
    ],
)
def test_an_invalid_model_names_the_file_and_the_reason(tmp_path, spoil, said):
    """
    "not a model": missing, not parseable, or truncated.
    """
    model = make_model(tmp_path / "m")
    spoil(model)

    error = refusal(model)

    assert error.what.endswith("not a model")
    assert said in error.why


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("model-00002-of-00002.safetensors"), "00002-of-00002.safetensors is missing"),
        (cut("model-00001-of-00002.safetensors", -1), "is cut off"),
        (
            lambda m: (m / "model-00001-of-00002.safetensors").write_bytes(safetensors(x=b"1")),
            "lacks w1",
        ),
        (write("model.safetensors.index.json", "{}"), "no weight_map"),
        (
            write("model.safetensors.index.json", json.dumps({"weight_map": {"w": "../x"}})),
            "not a file of this directory",
        ),
    ],
)
def test_an_incomplete_sharded_model_is_refused(tmp_path, spoil, said):
    """
    It needs every shard of the index, with every tensor that the index lists.
    """
    model = make_shards(tmp_path / "m")
    spoil(model)

    assert said in refusal(model).why


def test_a_file_is_not_a_model(tmp_path):
    """
    The path must be the directory, not the weights file.
    """
    weights = make_model(tmp_path / "m") / "model.safetensors"

    assert "is a file" in refusal(weights).why
    assert "is a file" in refusal(weights / "x").why


@pytest.mark.parametrize("name", ["loop", "x" * 300])
def test_a_path_that_cannot_be_looked_up_is_one_error(tmp_path, name):
    """
    A link that leads to itself, and a name that no file system takes.
    """
    (tmp_path / "loop").symlink_to("loop")

    assert name in refusal(tmp_path / name).what
