"""
A broken file of a model directory is an error that names file and key.
"""

import json

import pytest

from runtime.chat import load_chat_template
from runtime.chat.files import read_chat_files
from runtime.contract.errors import ModelError
from tests.unit.runtime.chat.models import make_model


def test_a_model_without_template_has_none(tmp_path):
    assert load_chat_template(make_model(tmp_path / "m")) is None


def test_a_model_without_tokenizer_config_has_the_template_alone(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("x")

    files = read_chat_files(tmp_path)

    assert files.templates == {"default": "x"}
    assert files.special_tokens == {}


NAME, TEXT = {"name": "default"}, {"template": "x"}


@pytest.mark.parametrize(
    ("template", "key"),
    [
        (5, "chat_template:"),
        ({"default": "x"}, "chat_template:"),
        (["x"], "chat_template:"),
        ([TEXT], "chat_template[0].name"),
        ([{**NAME, **TEXT}, {**TEXT, "name": "a b"}], "chat_template[1].name"),
        ([{**NAME, **TEXT}] * 2, "default is there twice"),
        ([NAME], "chat_template[0].template"),
        ([{**TEXT, "name": "rag"}], "no template 'default' among rag"),
        ([{**TEXT, "name": f"t{n}"} for n in range(17)], "17 templates; 16 at most"),
        ("x" * ((1 << 20) + 1), "1048577 bytes; 1048576 at most"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_a_chat_template_of_another_form_is_refused(tmp_path, template, key):
    model = make_model(tmp_path / "m", config={"chat_template": template})

    with pytest.raises(ModelError) as caught:
        read_chat_files(model)
    assert "tokenizer_config.json" in caught.value.what
    assert key in caught.value.why


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer_config.json", b"{", "not JSON"),
        ("tokenizer_config.json", b"[]", "not a JSON object"),
        ("tokenizer_config.json", b"[" * 200_000, "not JSON"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token: should be a text"),
        ("tokenizer_config.json", b'{"eos_token": {"id": 5}}', "eos_token: should be a text"),
        ("chat_template.jinja", b"\xff", "not a template"),
        ("chat_template.jinja", b"x" * ((1 << 20) + 1), "more than 1048576 bytes"),
        ("additional_chat_templates/a b.jinja", b"x", "its name"),
    ],
)
def test_a_file_that_is_no_chat_file_is_refused_by_its_name(tmp_path, name, content, why):
    model = make_model(tmp_path / "m", files={"chat_template.jinja": b"x", name: content})

    with pytest.raises(ModelError) as caught:
        read_chat_files(model)
    assert name in caught.value.what
    assert why in caught.value.why


def test_a_broken_old_map_of_tokens_is_refused(tmp_path):
    files = {"tokenizer_config.json": {}, "special_tokens_map.json": {"bos_token": ["x"]}}
    model = make_model(tmp_path / "m", template="x", files=files)

    with pytest.raises(ModelError, match="special_tokens_map"):
        read_chat_files(model)


def test_a_large_file_is_not_read(tmp_path):
    """
    Sparse: it takes no disk, and would take 1 TiB of memory.
    """
    model = make_model(tmp_path / "m", template="x")
    with (model / "tokenizer_config.json").open("ab") as file:
        file.truncate(1 << 40)

    with pytest.raises(ModelError, match="tokenizer_config"):
        read_chat_files(model)


def test_a_file_that_can_not_be_read_names_the_remedy(tmp_path):
    model = make_model(tmp_path / "m")
    (model / "chat_template.jinja").mkdir()

    with pytest.raises(ModelError) as caught:
        read_chat_files(model)
    assert "read access" in caught.value.fix


def test_a_template_of_a_list_that_can_not_be_compiled_is_named(tmp_path):
    broken = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "\n{% for"}]
    model = make_model(tmp_path / "m", config={"chat_template": broken})

    with pytest.raises(ModelError) as caught:
        load_chat_template(model)
    assert caught.value.what.endswith("tokenizer_config.json: chat_template: not a chat template")
    assert caught.value.why.startswith("tool_use: line 2:")


def test_line_ends_in_json_stay_as_they_are(tmp_path):
    model = make_model(tmp_path / "m", config={"chat_template": "a\r\nb"})

    assert read_chat_files(model).templates == {"default": "a\r\nb"}


def test_links_are_followed(tmp_path):
    """
    On a host the files of a model are links to its blobs.
    """
    model = make_model(tmp_path / "m")
    (tmp_path / "blob").write_text("x")
    (model / "chat_template.jinja").symlink_to("../blob")
    (tmp_path / "config").write_text(json.dumps({"eos_token": "<eos>"}))
    (model / "tokenizer_config.json").unlink()
    (model / "tokenizer_config.json").symlink_to("../config")

    files = read_chat_files(model)
    assert (files.templates, files.special_tokens) == ({"default": "x"}, {"eos_token": "<eos>"})
