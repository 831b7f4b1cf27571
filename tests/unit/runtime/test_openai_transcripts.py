"""
The transcripts of docs/reference/openai.md: each call is sent, and its answer is the page's.
"""

import re
import shlex
import shutil
import subprocess

import pytest

from deploy.lab.models.build import CHAT_TEMPLATE_FILE
from tests.unit.runtime.started import ROOT, Started, closing

PAGE = ROOT / "docs/reference/openai.md"
TOKEN = "one"
RELEASE = "version: v1.0.0\nmodel_name: lab\npooling: mean\ntool_parser: hermes\n"
GOLDEN = (
    """{"prompt": "The slipway is", "max_tokens": 8, "expected": " where ships meet the sea."}\n"""
)
READS_TOOLS = "{%- if tools -%}{%- endif -%}"
CALLS = {
    "/v1/chat/completions": 5,
    "/v1/completions": 2,
    "/v1/embeddings": 1,
    "/tokenize": 1,
    "/detokenize": 1,
    "/v1/models": 2,
    "/v1/models/gpt-9": 1,
}


def transcripts(page):
    """
    Return the calls of a page and their answers: indented lines from one `$` to the next.
    """
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", page, re.MULTILINE)
    lines = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]
    parts = [part for block in lines for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    found = []
    for part in parts:
        call, answer = re.fullmatch(r"((?:.*\\\n)*.*)\n((?s:.*))", part).groups()
        found.append((call.replace("\\\n", " "), answer))
    return found


def matches(shown, answer):
    """
    Return whether *answer* is what the page shows.

    There, lines are broken where JSON has a space, and `...` stands for what differs.
    """
    pattern = re.escape(re.sub(r"\n +", " ", shown).strip()).replace(r"\.\.\.", r'[^"{}\n]*')
    return re.fullmatch(pattern, answer.strip()) is not None


TRANSCRIPTS = transcripts(PAGE.read_text())


@pytest.fixture(scope="module")
def runtime(tmp_path_factory, lab_model):
    """
    A ready runtime that wants a token and knows tools.
    """
    folder = tmp_path_factory.mktemp("transcripts")
    shutil.copytree(lab_model, folder / "weights")
    with (folder / "weights" / CHAT_TEMPLATE_FILE).open("a") as template:
        template.write(READS_TOOLS)
    (folder / "blue").mkdir()
    (folder / "blue/golden.jsonl").write_text(GOLDEN)
    with closing(
        Started(
            folder / "blue",
            model=folder / "weights",
            release=RELEASE,
            name="runtime.sock",
            env={"SLIPWAY_API_TOKENS": TOKEN},
        )
    ) as runtime:
        runtime.messages_until("READY=1")
        runtime.drain()
        yield runtime


def send(runtime, call):
    """
    Return what the call prints; only address and token are not the page's.
    """
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: apt-get install curl")
    own = ["--unix-socket", str(runtime.socket)]
    if "authorization:" not in call:
        own += ["-H", f"authorization: Bearer {TOKEN}"]
    words = shlex.split(call.replace("http://HOST:8000", "http://runtime"))
    return subprocess.run(
        [*words, *own], capture_output=True, text=True, check=True, timeout=40
    ).stdout


@pytest.mark.parametrize(("call", "shown"), TRANSCRIPTS)
def test_a_documented_call_has_its_answer(runtime, call, shown):
    """
    As it stands on the page.
    """
    answer = send(runtime, call)
    assert matches(shown, answer), f"{call}\n{answer}"


def test_the_page_has_a_transcript_of_each_route():
    """
    And every indented curl is one of them.
    """
    paths = re.findall(r"http://HOST:8000(\S*)", " ".join(call for call, _ in TRANSCRIPTS))
    assert {path: paths.count(path) for path in paths} == CALLS
    assert len(re.findall(r"^ +(?:\$ )?curl", PAGE.read_text(), re.MULTILINE)) == len(TRANSCRIPTS)


def test_another_answer_does_not_match():
    """
    `...` stands for a part of one value: not for a key, a string or a document more.
    """
    shown = '{"id": "cmpl-...", "created": ...,\n    "text": " a ship."}\n'
    good = '{"id": "cmpl-5f", "created": 17, "text": " a ship."}'
    assert matches(shown, good)
    for false in (
        good.replace("a ship", "a boat"),
        good.replace('"text"', '"version": "v1", "text"'),
        good.replace("17", '"17"'),
        good.replace('"cmpl-5f"', '"cmpl-5f", "model": "lab"'),
        good + good,
    ):
        assert not matches(shown, false)
