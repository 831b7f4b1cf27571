import json

import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.server.generation_defaults import read_generation_defaults
from runtime.server.model_files import open_model_files
from tests.unit.runtime.builders import make_tokenizer
from tests.unit.runtime.serving import Runtime

pytestmark = pytest.mark.anyio


def write(folder, **document):
    (folder / "generation_config.json").write_text(json.dumps(document))
    return folder


def test_the_model_names_some_defaults(tmp_path):
    """
    Others are absent, as are those that are null; keys of other parts are not looked at.
    """
    document = {"temperature": 0.6, "top_k": 20, "top_p": None, "max_length": "x"}
    assert read_generation_defaults(write(tmp_path, **document)) == {
        "temperature": 0.6,
        "top_k": 20,
    }
    assert read_generation_defaults(write(tmp_path, do_sample=False, temperature=0.6)) == {
        "temperature": 0.0
    }
    assert read_generation_defaults(write(tmp_path, do_sample=True)) == {}
    (tmp_path / "generation_config.json").unlink()
    assert read_generation_defaults(tmp_path) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", 2.5),
        ("top_p", -0.1),
        ("top_k", 0.5),
        ("min_p", [0]),
        ("repetition_penalty", 0),
    ],
)
def test_a_value_that_no_request_may_have_is_refused(tmp_path, key, value):
    with pytest.raises(ModelError) as caught:
        read_generation_defaults(write(tmp_path, **{key: value}))
    assert caught.value.what.startswith(f"{tmp_path}/generation_config.json: {key}: ")
    assert "generation_defaults: openai" in caught.value.fix


def test_they_are_read_where_the_configuration_says_so(tmp_path):
    """
    Otherwise OpenAI's count, and what stands in the file is not looked at.
    """
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, temperature=0.3)
    ours, models = (
        open_model_files(tmp_path, EngineOptions(generation_defaults=whose)).generation_defaults
        for whose in ("openai", "model")
    )
    assert (ours, models) == ({}, {"temperature": 0.3})


async def test_a_request_that_leaves_a_field_out_gets_the_default_of_the_model():
    """
    One that names it, 1 and 0 included, keeps its own; /generate is greedy as ever.
    """
    runtime = Runtime()
    runtime.serving.defaults = {"temperature": 0.25, "top_p": 0.5}
    used = []
    for body in ({}, {"temperature": 1}, {"temperature": 0, "top_p": 1}, {"top_p": None}):
        runtime.engine.will("ok")
        assert (await runtime.chat("hi", **body)).status_code == 200
        params = runtime.engine.asked[-1]
        used.append((params["temperature"], params["top_p"]))
    assert used == [(0.25, 0.5), (1, 0.5), (0, 1), (0.25, 0.5)]
    runtime.engine.will("ok")
    assert (await runtime.generate()).status_code == 200
    assert runtime.engine.asked[-1]["temperature"] == 0
