"""
What `/openapi.json` says against what `python -m runtime` does: schemathesis asks, and compares.

SLIPWAY_OPENAPI_LONG=1 sends more than 10,000 requests; otherwise some hundred.
"""

import copy
import json
import os
import subprocess
import sys
from collections import Counter

import httpx
import pytest

from deploy.lab.models.build import CHAT_TEMPLATE_FILE, build
from runtime.server.openapi_errors import CODES
from tests.free_port import free_port
from tests.unit.runtime.openapi_checks import COUNTS_FILE
from tests.unit.runtime.started import ROOT, Started, closing

IS_LONG = bool(os.environ.get("SLIPWAY_OPENAPI_LONG"))
TIMEOUT_S = 7200 if IS_LONG else 300
pytestmark = pytest.mark.timeout(TIMEOUT_S)
TOKEN = "one"
SEED = 7
RELEASE = "version: v1.0.0\nmodel_name: lab\npooling: mean\ntool_parser: hermes\n"
TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content or [] -%}{{- part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- for tool in tools or [] -%}{{- tool.function.name -}}{%- endfor -%}
"""
# 504 is an answer: some requests ask for deadlines that nothing can keep.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]
positive_data_acceptance.enabled = false
[checks.negative_data_rejection]
enabled = false
expected-statuses = ["400", "401", "403", "404", "405", "413", "415", "422", "504"]
"""
# Of each operation: a GET has little that can differ.
MOST = {"post": 1250, "get": 100} if IS_LONG else {"post": 20, "get": 4}
OPERATIONS = "".join(
    f'[[operations]]\ninclude-method = "{method.upper()}"\ngeneration.max-examples = {most}\n'
    for method, most in MOST.items()
)
TOOL = {"type": "function", "function": {"name": "get_tide", "parameters": {"type": "object"}}}
# Of the fields of bodies, values that this model can answer within some milliseconds.
FEW = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 8}, {"type": "null"}]}
ID = {"type": "integer", "minimum": 0, "maximum": 500}
TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
NONE = {"type": "null"}
CAN_BE_ANSWERED = {
    "model": {"enum": [None, "lab"]},
    "n": {"enum": [None, 1, 2]},
    "max_tokens": FEW,
    "max_completion_tokens": FEW,
    "min_tokens": {"enum": [None, 0]},
    "ignore_eos": {"enum": [None, False]},
    "stop_token_ids": {"enum": [None, []]},
    "logit_bias": {"enum": [None, {"7": -100, "8": 1.5}]},
    "logprobs": {"enum": [None, 0, 2]},
    "top_logprobs": NONE,
    "stream_options": NONE,
    "prompt": {
        "anyOf": [
            TEXT,
            {"type": "array", "minItems": 1, "maxItems": 9, "items": ID},
            {"type": "array", "minItems": 1, "maxItems": 3, "items": TEXT},
        ]
    },
    "messages": {
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "additionalProperties": False,
            "properties": {"role": {"enum": ["system", "user", "tool"]}, "content": TEXT},
        },
    },
    "tokens": {"type": "array", "maxItems": 9, "items": ID},
    "dimensions": NONE,
    "tools": {"enum": [None, [TOOL]]},
    "tool_choice": {"enum": [None, "none", "auto"]},
    "chat_template_kwargs": {"enum": [None, {}]},
    "response_format": {"enum": [None, {"type": "text"}, {"type": "json_object"}]},
    "structured_outputs": NONE,
    "timeout_s": NONE,
}
ONE_ROUTE = {
    "GenerateBody": {
        "model": CAN_BE_ANSWERED["model"],
        "prompt": TEXT,
        "max_tokens": FEW["anyOf"][0],
    },
    "ChatBody": {
        "max_tokens": FEW["anyOf"][0],
        "logprobs": {"const": True},
        "stream": {"const": True},
        "top_logprobs": {"enum": [None, 0, 3]},
        "stream_options": {"enum": [None, {"include_usage": True}]},
    },
    "TokenizeBody": {"prompt": TEXT, "messages": NONE},
    "EmbeddingBody": {"input": CAN_BE_ANSWERED["prompt"]},
}


class Report:
    """
    What one run of schemathesis said.

    Attributes:
        answers: Number of answers, by operation and status.
    """

    def __init__(self, done, answers):
        self.exit_code, self.text = done.returncode, done.stdout + done.stderr
        self.answers = Counter(answers)

    @property
    def requests(self):
        return sum(self.answers.values())

    def answered(self, operation):
        return self.answers[f"{operation} 200"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("openapi")


@pytest.fixture(scope="module")
def url(folder):
    """
    Address of a runtime whose model knows tools and makes embeddings, and has learned nothing.
    """
    build("good-v1", folder / "weights", steps={"v1": 1, "v2": 1})
    (folder / "weights" / CHAT_TEMPLATE_FILE).write_text(TEMPLATE)
    (folder / "blue").mkdir()
    (folder / "blue/golden.jsonl").write_text("")
    port = free_port()
    with closing(
        Started(
            folder / "blue",
            model=folder / "weights",
            release=RELEASE,
            name="runtime.sock",
            env={"SLIPWAY_API_TOKENS": TOKEN},
            port=port,
        )
    ) as runtime:
        runtime.messages_until("READY=1")
        runtime.drain()
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def document(url):
    return httpx.get(f"{url}/openapi.json").json()


def compare(folder, url, document, *arguments):
    """
    Let schemathesis send requests to *url* that follow from *document*, and check the answers.
    """
    schema, config, counts = (folder / name for name in ("openapi.json", "st.toml", "counts"))
    schema.write_text(json.dumps(document))
    config.write_text(CONFIG + OPERATIONS)
    counts.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", schema),
            *("--url", url, "-H", f"Authorization: Bearer {TOKEN}", "--seed", str(SEED)),
            *("--no-color", "--generation-database", "none", "--suppress-health-check", "all"),
            *("--warnings", "off", "--continue-on-failure", "--request-timeout", "120"),
            *arguments,
        ],
        cwd=folder,  # where it keeps its cache
        env=os.environ
        | {
            "SCHEMATHESIS_HOOKS": "tests.unit.runtime.openapi_checks",
            "PYTHONPATH": str(ROOT),
            COUNTS_FILE: str(counts),
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert counts.exists(), done.stdout + done.stderr
    return Report(done, json.loads(counts.read_text()))


def closed(document):
    """
    Return *document* with no further keys and codes in answers than it names.
    """
    document = copy.deepcopy(document)

    def close(schema):
        if isinstance(schema, list):
            for each in schema:
                close(each)
        if not isinstance(schema, dict):
            return
        if schema.get("type") == "object" and "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            close(each)

    schemas = document["components"]["schemas"]
    close(schemas)
    for status, codes in CODES.items():
        if error := schemas.get(f"Error{status}"):
            error["properties"]["error"]["properties"]["code"] = {"enum": list(codes)}
    return document


def answerable(document):
    """
    Return *document* with bodies that this model can answer: most answers are 200.
    """
    document = copy.deepcopy(document)
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Body"):
            continue
        if name == "ChatBody":
            schema["required"].append("max_tokens")  # else an answer takes the whole context
        own = CAN_BE_ANSWERED | ONE_ROUTE.get(name, {})
        schema["properties"] |= {key: own[key] for key in schema["properties"].keys() & own.keys()}
    document["components"]["parameters"]["id"]["schema"] = {"enum": ["lab"]}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["parameters"] = [
                each
                for each in operation["parameters"]
                if not each["$ref"].endswith("/x-request-timeout-s")
            ]
    return document


def test_the_description_is_true(folder, url, document):
    """
    Valid and invalid requests, in all that can be wrong with one: every answer has a status, a
    content type, headers, keys and a code that the description names; none is a 500.
    """
    phases = "coverage,fuzzing" if IS_LONG else "fuzzing"
    report = compare(folder, url, closed(document), "--phases", phases)
    assert report.exit_code == 0, report.text
    assert report.requests >= (10_000 if IS_LONG else 100)
    assert not [key for key in report.answers if key.endswith(" 500")]
    print(f"{report.requests} requests: {dict(report.answers)}")


def test_answers_are_as_described(folder, url, document):
    """
    Requests that the model can answer, whole and streamed: every route does.
    """
    phases = ("--phases", "fuzzing", "--mode", "positive")
    report = compare(folder, url, answerable(closed(document)), *phases)
    assert report.exit_code == 0, report.text
    for path, operations in document["paths"].items():
        for method in operations:
            assert report.answered(f"{method.upper()} {path}") >= 3, report.answers


def test_a_description_that_is_not_true_is_seen(folder, url, document):
    """
    A status, a key and a header that it does not name or names wrongly.
    """
    false = closed(document)
    del false["paths"]["/detokenize"]["post"]["responses"]["400"]
    del false["components"]["schemas"]["Model"]["properties"]["max_model_len"]
    false["components"]["schemas"]["Model"]["required"].remove("max_model_len")
    live = false["paths"]["/livez"]["get"]["responses"]["200"]
    live["headers"]["x-not-sent"] = {"required": True, "schema": {"type": "string"}}
    routes = [f"--include-path={path}" for path in ("/detokenize", "/v1/models", "/livez")]
    report = compare(folder, url, false, "--phases", "fuzzing", *routes)
    assert report.exit_code == 1, report.text
    assert "Undocumented status code" in report.text
    assert "max_model_len" in report.text
    assert "x-not-sent" in report.text
