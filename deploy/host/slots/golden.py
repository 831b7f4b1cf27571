"""
Does the slot give the answers that the bundle was built with?
"""

from __future__ import annotations

import json
from typing import Any

from deploy.host.journaled import journaled
from deploy.host.rpc import HostError, Request
from deploy.host.slots import unix_http
from deploy.host.system import System

_TELL = 10  # failures that are told in full
_TELL_CHARS = 300


def run(system: System, request: Request) -> dict[str, Any]:
    """
    Ask the slot each golden prompt, with temperature 0, and compare the answers.
    """
    slot = request.args.slot()
    timeout_s = request.args.seconds("timeout_s", 120.0)
    request.args.done()
    with journaled(system, request, {"slot": slot}) as op:
        with op.locked():
            path = system.layout.slot_link(slot) / "golden.jsonl"
            prompts = _read(path)
        token = unix_http.api_token(system.layout)
        until_s = system.clock.steady_s() + timeout_s
        failures: list[dict[str, Any]] = []
        for number, prompt in enumerate(prompts, start=1):
            left_s = until_s - system.clock.steady_s()
            got = (
                _ask(system, slot, prompt, token, left_s)
                if left_s > 0
                else f"not asked: {timeout_s:.0f} s were over"
            )
            if got != prompt["expected"]:
                failures.append({"line": number, "expected": prompt["expected"], "got": got})
        op.result = {
            "total": len(prompts),
            "passed": len(prompts) - len(failures),
            "failures": [_short(failure) for failure in failures[:_TELL]],
        }
    return op.result


def _ask(
    system: System, slot: str, prompt: dict[str, Any], token: str | None, left_s: float
) -> str:
    answer = unix_http.request(
        system.layout.runtime_socket(slot),
        "POST",
        "/generate",
        timeout_s=left_s,
        document={
            "prompt": prompt["prompt"],
            "max_tokens": prompt["max_tokens"],
            "temperature": 0,
        },
        token=token,
    )
    if answer.status != 200:
        return f"error {answer.status or 'without an answer'}: {answer.body}"
    try:
        text = json.loads(answer.body)["text"]
    except (ValueError, KeyError, TypeError):
        return f"an answer without text: {answer.body}"
    return text if isinstance(text, str) else repr(text)


def _read(path: Any) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line) for line in lines if line.strip()]
        for prompt in prompts:
            if not {"prompt", "max_tokens", "expected"} <= set(prompt):
                raise ValueError(f"a line has only {sorted(prompt)}")
    except (OSError, ValueError) as error:
        raise HostError(
            "PreconditionError",
            "the golden prompts of the release can't be read",
            f"{path}: {error}",
            "start the slot first: slot.start",
        ) from None
    return prompts


def _short(failure: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value[:_TELL_CHARS] if isinstance(value, str) else value
        for key, value in failure.items()
    }
