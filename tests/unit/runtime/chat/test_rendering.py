"""
What the runtime renders is what transformers renders, by the recordings beside this file.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest

from runtime.chat import ChatTemplateError, load_chat_template
from tests.unit.runtime.chat import layouts
from tests.unit.runtime.chat.conversations import CONVERSATIONS
from tests.unit.runtime.chat.layouts import LAYOUTS
from tests.unit.runtime.chat.models import RECORDINGS, TEMPLATES, make_model

ELSEWHERE = os.environ.get("SLIPWAY_CHAT_TEMPLATES")
LICENSED = {"glm-4-chat", "llama-3.1-instruct"}
RECORDED = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RECORDINGS.glob("*.json")
}


def rendering(template, conversation):
    try:
        text = template.render(
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=conversation.add_generation_prompt,
            kwargs=conversation.kwargs,
        )
    except ChatTemplateError as error:
        return {"refused": str(error)}
    return {"text": text}


def renderings(model, conversations):
    template = load_chat_template(model)
    try:
        return {name: rendering(template, each) for name, each in conversations.items()}
    finally:
        template.close()


def test_every_template_was_recorded():
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} | LICENSED | {"layouts"} == set(
        RECORDED
    )


@pytest.mark.parametrize("name", sorted(set(RECORDED) - LICENSED - {"layouts"}))
def test_a_published_template_renders_as_in_transformers(name, tmp_path):
    """
    Calls of tools, their results, text parts, reasoning and refusals included.
    """
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    model = make_model(tmp_path / "m", template=text)

    assert renderings(model, CONVERSATIONS) == RECORDED[name]["renderings"]


@pytest.mark.skipif(ELSEWHERE is None, reason="SLIPWAY_CHAT_TEMPLATES names no directory")
@pytest.mark.parametrize("name", sorted(LICENSED))
def test_a_licensed_template_renders_as_in_transformers(name, tmp_path):
    """
    Its text is not in this repository, so hashes are compared.
    """
    text = (Path(ELSEWHERE) / f"{name}.jinja").read_text(encoding="utf-8")
    assert sha256(text) == RECORDED[name]["template_sha256"]
    rendered = renderings(make_model(tmp_path / "m", template=text), CONVERSATIONS)

    hashed = {
        conversation: {"sha256": sha256(each["text"])} if "text" in each else each
        for conversation, each in rendered.items()
    }
    assert hashed == RECORDED[name]["renderings"]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", LAYOUTS)
def test_template_and_tokens_are_read_from_the_files_that_transformers_reads(name, tmp_path):
    """
    Of several files the same one counts, and of several templates the same one is used.
    """
    model = make_model(tmp_path / "m", **LAYOUTS[name])

    assert renderings(model, layouts.CONVERSATIONS) == RECORDED["layouts"][name]
