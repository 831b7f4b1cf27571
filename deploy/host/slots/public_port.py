"""
The public port, asked as users ask it.
"""

from __future__ import annotations

from deploy.host.bundle.golden_form import request_of
from deploy.host.protocol import Call, ErrorKind, HostError, PublicAnswer, PublicAsk
from deploy.host.slots.golden import read_prompts
from deploy.host.slots.runtime_api import MODELS, api_token
from deploy.host.system import System

ASK_TIMEOUT_S = 20.0  # for all attempts together
ASK_ATTEMPTS = 5
_REQUEST_TIMEOUT_S = 10.0
_PAUSE_S = 0.2


def ask(system: System, _call: Call, request: PublicAsk) -> PublicAnswer:
    """
    Send one request through the public port; changes nothing.
    """
    ask_public(system, request.slot, request.version)
    return PublicAnswer(request.version)


def ask_public(system: System, slot: str, version: str) -> None:
    """
    Ask the public port until *version* answers with a 2xx.

    Raises:
        HostError: It does not, in ASK_ATTEMPTS attempts or ASK_TIMEOUT_S.
    """
    prompts = read_prompts(system.layout, slot)
    method, target, document = "GET", MODELS, None
    if prompts:
        method = "POST"
        target, document = request_of(prompts[0] | {"max_tokens": 1})
    token = api_token(system.layout)
    until_s = system.steady_s() + ASK_TIMEOUT_S
    for attempt in range(ASK_ATTEMPTS):
        left_s = until_s - system.steady_s() - (_PAUSE_S if attempt else 0.0)
        if left_s <= 0:
            break
        if attempt:
            system.sleep(_PAUSE_S)
        answer = system.http_public(
            method,
            target,
            timeout_s=min(left_s, _REQUEST_TIMEOUT_S),
            document=document,
            token=token,
        )
        is_success = answer.status is not None and 200 <= answer.status < 300
        if is_success and answer.version == version:
            return
    if is_success:
        why = f"it was answered by version {answer.version or 'none'}"
    else:
        why = f"it answered {answer.status or 'nothing'}: {answer.body[:300]}"
    raise HostError(
        ErrorKind.COMMAND_FAILED,
        f"version {version} does not answer a request through the public port",
        f"{method} {target}: {why}",
        "inv status; what is not confirmed the host takes back by itself",
    )
