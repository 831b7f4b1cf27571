"""
Structured output through `python -m runtime` with a model of the lab, asked by OpenAI's client.
"""

import contextlib
import json
import re
import shutil
import threading
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from deploy.lab.models.build import build
from tests.unit.runtime.started import Started, closing
from tests.unit.runtime.structured.hostile import HOSTILE
from tests.unit.runtime.test_openai_client import TOKEN, make_client

ASKED = [{"role": "user", "content": "The slipway is"}]
PLAIN = {"model": "lab", "messages": ASKED, "max_tokens": 16, "temperature": 0}


class Berth(BaseModel):
    name: str = Field(max_length=4)
    kind: Literal["quay", "crane"]
    length_m: int = Field(ge=0, le=99)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structured")
    build("good-v1", folder / "weights")
    (folder / "blue").mkdir()
    shutil.copy(folder / "weights" / "golden.jsonl", folder / "blue")
    with closing(
        Started(
            folder / "blue",
            model=folder / "weights",
            release="version: v1.0.0\nmodel_name: lab\n",
            name="runtime.sock",
            env={"SLIPWAY_API_TOKENS": TOKEN},
        )
    ) as runtime:
        runtime.messages_until("READY=1")
        # A manager that does not read blocks the process: its socket holds ten messages.
        threading.Thread(target=drain, args=(runtime.manager,), daemon=True).start()
        yield runtime


def drain(manager):
    with contextlib.suppress(OSError):  # it was closed
        while manager.recv(4096):
            pass


@pytest.fixture
def client(runtime):
    with make_client(runtime) as client:
        yield client


def ask(client, **fields):
    return client.chat.completions.create(**PLAIN | {"max_tokens": 150} | fields).choices


def finished(parse):
    """
    Return the answers of some seeds that max_tokens did not cut: the model likes white space.
    """
    answers = []
    for seed in range(8):
        with contextlib.suppress(openai.LengthFinishReasonError):
            answers.append(parse(**PLAIN | {"max_tokens": 240, "temperature": 1, "seed": seed}))
    return answers


def test_openais_client_parses_a_pydantic_model(client):
    """
    Control: without a format the model writes no JSON.
    """

    def parse(**fields):
        return client.chat.completions.parse(**fields, response_format=Berth)

    answers = finished(parse)
    assert len(answers) > 1
    for answer in answers:
        assert isinstance(answer.choices[0].message.parsed, Berth)
        assert answer.choices[0].finish_reason == "stop"
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(ask(client)[0].message.content)


def test_a_streamed_answer_is_parsed(client):
    def parse(**fields):
        with client.chat.completions.stream(**fields, response_format=Berth) as stream:
            return stream.get_final_completion()

    answers = finished(parse)
    assert len(answers) > 1
    assert all(isinstance(answer.choices[0].message.parsed, Berth) for answer in answers)


def test_vllms_fields_work_through_extra_body(client):
    def structured(**outputs):
        (choice,) = ask(client, extra_body={"structured_outputs": outputs})
        assert choice.finish_reason == "stop"
        return choice.message.content

    assert re.fullmatch("[0-9]{3}-[a-f]", structured(regex="[0-9]{3}-[a-f]"))
    assert structured(choice=["a crane", "a quay"]) in ("a crane", "a quay")
    assert structured(grammar='root ::= "x" ("y" | "z")') in ("xy", "xz")
    assert structured(json={"const": "a b"}) == '"a b"'


def test_an_answer_that_max_tokens_cuts_says_so(client):
    pattern = {"structured_outputs": {"regex": "a{30}"}}
    (cut,) = ask(client, max_tokens=3, extra_body=pattern)
    assert cut.finish_reason == "length"


def test_each_choice_of_one_request_matches(client):
    choices = ask(
        client, n=4, temperature=1, extra_body={"structured_outputs": {"regex": "[ab]{9}"}}
    )
    assert all(re.fullmatch("[ab]{9}", choice.message.content) for choice in choices)
    assert len({choice.message.content for choice in choices}) > 1


def test_hostile_grammars_are_refused_while_others_are_served(client, runtime):
    """
    Every answer beside them is the one that the model gives alone.
    """
    alone = client.chat.completions.create(**PLAIN).choices[0].message.content
    served, stop = [], threading.Event()

    def serve():
        with make_client(runtime) as other:
            while not stop.is_set():
                served.append(other.chat.completions.create(**PLAIN).choices[0].message.content)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for kind, text in HOSTILE.values():
            with pytest.raises(openai.BadRequestError) as refused:
                ask(client, extra_body={"structured_outputs": {kind.value: text}})
            assert refused.value.param.startswith("structured_outputs")
            assert len(str(refused.value)) < 2000
    finally:
        stop.set()
        thread.join()
    assert served
    assert set(served) == {alone}
