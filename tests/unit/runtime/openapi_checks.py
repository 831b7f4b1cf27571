"""
The checks of schemathesis that are ours; its process loads them (SCHEMATHESIS_HOOKS).

Writes how many answers of each operation had which status into the file that COUNTS_FILE names.
"""

import atexit
import json
import os
import re
from collections import Counter
from pathlib import Path

import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks as built_in

load_all_checks()

COUNTS_FILE = "SLIPWAY_OPENAPI_COUNTS"
UNKNOWN_HEADER = "x-schemathesis-unknown-property"
# Why a request is refused though its body is of its schema: the codes that say so, ...
BY_CODE = {
    "chat_template_refused",
    "context_length_exceeded",
    "empty_prompt",
    "grammar_refused",
    "no_chat_template",
    "not_supported",
    "too_many_answers",
    "tools_not_supported",
    "unknown_token",
}
# ... and rules between two fields, or of the model that is served.
BY_WORDS = re.compile(
    r"""
      only\ with\ (stream:\ true|logprobs:\ true|tools)$
    | max_tokens:\ 0\ only\ with\ echo:\ true;
    | not\ with\ (echo|response_format|min_tokens|ignore_eos|stop_token_ids)
    | names\ none\ of\ the\ tools | two\ tools\ have\ the\ same\ name
    | not\ beside\ a\ tool_choice\ that\ requires\ calls
    | min_tokens:\ \d+;\ the\ answer\ has\ at\ most\ \d+$
    | dimensions:\ this\ model's\ embeddings\ have\ \d+$
    | has\ one\ half\ of\ a\ surrogate\ pair$
    | the\ body\ has\ more\ than\ a\ request\ may\ have
    """,
    re.VERBOSE,
)
counts = Counter()


@schemathesis.check
def requests_of_the_schema_are_refused_for_a_reason_only(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code not in (400, 422):
        return
    error = response.json()["error"]
    known = error["code"] in BY_CODE or BY_WORDS.search(error["message"])
    assert known, f"{error['code']}: {error['message']}"


@schemathesis.check
def other_requests_are_refused(ctx, response, case):
    if UNKNOWN_HEADER not in (case.headers or {}):  # a header that is not known is not read
        built_in.negative_data_rejection(ctx, response, case)


@schemathesis.check
def headers_are_everywhere(ctx, response, case):
    missing = {"x-request-id", "x-slipway-version", "x-slipway-slot"} - response.headers.keys()
    assert not missing, f"no {', '.join(sorted(missing))}"


@schemathesis.hook
def after_call(context, case, response):
    counts[f"{case.operation.label} {response.status_code}"] += 1


if counts_file := os.environ.get(COUNTS_FILE):
    atexit.register(lambda: Path(counts_file).write_text(json.dumps(counts)))
