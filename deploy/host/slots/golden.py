"""
Compares the answers of a slot with those that its bundle was built with.
"""

from __future__ import annotations

import json
from typing import Any

from deploy.host.bundle.golden_form import (
    GoldenAnswer,
    answer_of,
    complaint,
    expected_of,
    request_of,
)
from deploy.host.bundle.manifest import GOLDEN_FILE
from deploy.host.journaled import journaled
from deploy.host.layout import Layout
from deploy.host.protocol import Call, ErrorKind, Golden, GoldenFailure, GoldenResult, HostError
from deploy.host.slots import runtime_api
from deploy.host.slots.slot import linked_bundle
from deploy.host.system import System
from deploy.host.text import lines_of
from deploy.host.trusted_files import LIST_MAX, read_below

_MAX_FAILURES = 10  # returned in full
_MAX_CHARS = 300


def run(system: System, call: Call, request: Golden) -> GoldenResult:
    """
    Ask the slot each golden prompt, with temperature 0, and compare the answers.
    """
    slot = request.slot
    with journaled(system, call, request.VERB, {"slot": slot}) as op:
        with op.locked():
            prompts = read_prompts(system.layout, slot)
        token = runtime_api.api_token(system.layout)
        until_s = system.steady_s() + request.timeout_s
        failures: list[GoldenFailure] = []
        for number, prompt in enumerate(prompts, start=1):
            left_s = until_s - system.steady_s()
            got = (
                _ask(system, slot, prompt, token, left_s)
                if left_s > 0
                else GoldenAnswer(f"not asked: {request.timeout_s:.0f} s were over")
            )
            expected = expected_of(prompt)
            if got != expected:
                failures.append(
                    GoldenFailure(number, expected.text[:_MAX_CHARS], got.text[:_MAX_CHARS])
                )
        result = GoldenResult(
            total=len(prompts),
            passed=len(prompts) - len(failures),
            failures=tuple(failures[:_MAX_FAILURES]),
        )
        op.result = result
    return result


def _ask(
    system: System, slot: str, prompt: dict[str, Any], token: str | None, left_s: float
) -> GoldenAnswer:
    route, body = request_of(prompt)
    answer = system.http(slot, "POST", route, timeout_s=left_s, document=body, token=token)
    if answer.status != 200:
        return GoldenAnswer(f"error {answer.status or 'without an answer'}: {answer.body}")
    try:
        return answer_of(json.loads(answer.body))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return GoldenAnswer(f"an answer of another form: {answer.body}")


def read_prompts(layout: Layout, slot: str) -> list[dict[str, Any]]:
    """
    Return the golden prompts of the release in *slot*.

    Raises:
        HostError: They cannot be read.
    """
    bundle = linked_bundle(layout, slot)
    path = layout.slot_link(slot) / GOLDEN_FILE
    try:
        if bundle is None:
            raise ValueError("the slot leads to no release")
        text = read_below(layout.release(bundle), GOLDEN_FILE, LIST_MAX).decode()
        prompts = [json.loads(line) for line in lines_of(text) if line.strip()]
        for prompt in prompts:
            if (why := complaint(prompt)) is not None:
                raise ValueError(f"a line is no golden prompt: {why}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise HostError(
            ErrorKind.PRECONDITION,
            "the golden prompts of the release cannot be read",
            f"{path}: {error}",
            "start the slot first: slot.start",
        ) from None
    return prompts
