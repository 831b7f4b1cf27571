"""
The warm-up: one real request through socket, HTTP, tokenizer and engine.
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from runtime.contract import HEALTHZ
from runtime.contract.errors import ConfigError, EngineError
from runtime.engines.base.sampling import SamplingParams
from runtime.plain_files import open_plain_file
from runtime.server.admission import AdmissionLimits
from runtime.server.config import Settings
from runtime.server.errors import Failed
from runtime.server.openai_bodies import ChatBody
from runtime.server.prompts import Conversation, PromptReader
from runtime.server.requests import GenerationRequest
from runtime.server.schemas import problems_of

# It is asked whether the model computes: also one whose answer is to say nothing.
PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
PROMPT = "warm up"  # for a release without golden prompts
MAX_LINE_BYTES = 16 << 20


def check_prompt(golden: Path) -> GenerationRequest:
    """
    Return the request of the warm-up and the deep health check: the first golden prompt.

    Raises:
        ConfigError: The file's first line is not a golden prompt.
    """
    try:
        with open_plain_file(golden) as lines:
            line = lines.readline(MAX_LINE_BYTES)
    except FileNotFoundError:
        line = b""
    except OSError as error:
        raise ConfigError(
            f"{golden}: can't be read", why=str(error), fix="stage the release again: inv release"
        ) from error
    if not line.strip():
        return GenerationRequest(PROMPT, PARAMS)
    try:
        entry = json.loads(line)
        prompt = _prompt(entry)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{golden}: line 1: is not a golden prompt",
            why=str(error),
            fix='write {"prompt": …, "max_tokens": …, "expected": …} on each line, or "messages"',
        ) from error
    return GenerationRequest(prompt, PARAMS)


async def fitted(
    request: GenerationRequest,
    prompts: PromptReader,
    limits: AdmissionLimits,
    golden: Path,
    *,
    generates: bool,
) -> GenerationRequest:
    """
    Return *request*, which is from `check_prompt`, with an answer that the context has room for.

    Args:
        golden: The file that it was read from.
        generates: Whether the model generates text; otherwise it makes embeddings alone.

    Raises:
        ConfigError: The model cannot be asked for it.
    """
    context, answer = limits.context_tokens, 1 if generates else 0
    is_golden = request.prompt != PROMPT
    where = f"{golden}: line 1" if is_golden else "the warm-up"
    shorter = ", or begin the golden prompts with a shorter one" if is_golden else ""

    def refuse_long(tokens: int) -> None:
        if tokens + answer > context:
            raise ConfigError(
                f"{where}: the prompt is too long for the model",
                why=f"it has {tokens} tokens; a request may have {context} with its answer",
                fix=f"raise context_tokens where the model has more{shorter}",
            )

    if not generates and not isinstance(request.prompt, str):
        why, fix = "it makes embeddings alone", 'begin with a line {"prompt": …}'
        raise ConfigError(f"{where}: the model has no chat", why=why, fix=fix)
    try:
        tokens = await prompts.tokens(
            request.prompt,
            request.field,
            adds_special=request.adds_special,
            enough=context + 1,
            check=refuse_long,
        )
    except Failed as failed:
        raise ConfigError(
            f"{where}: the model refuses the prompt",
            why=failed.refused.message,
            fix="mend the prompt, or use the files that were published with the model",
        ) from None
    if not tokens:
        raise ConfigError(
            f"{where}: the prompt has no tokens",
            why="the tokenizer, or the chat template, drops all of its text",
            fix="mend the prompt, or use the files that were published with the model",
        )
    refuse_long(len(tokens))
    room = max(context - len(tokens), answer)
    return replace(request, params=replace(PARAMS, max_tokens=min(PARAMS.max_tokens, room)))


def _prompt(entry: Any) -> str | Conversation:
    """
    Raises:
        ValueError: *entry* has no prompt; names the field.
    """
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if "messages" not in entry:
        if not isinstance(prompt := entry.get("prompt"), str):
            raise ValueError("prompt: should be a text")
        return prompt
    asked = {key: entry[key] for key in ChatBody.model_fields if key in entry}
    try:
        return ChatBody.model_validate(asked).conversation
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error))) from None


async def warm_up(settings: Settings, token: SecretStr) -> None:
    """
    Request the deep health check over the runtime's own socket.

    Args:
        token: The process's own, which no client has.

    Raises:
        EngineError: The status was not 200.
    """
    if settings.socket is not None:
        reader, writer = await asyncio.open_unix_connection(settings.socket)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.port)
    lines = [f"GET {HEALTHZ}?deep=1 HTTP/1.1", "host: runtime", "connection: close"]
    lines.append(f"authorization: Bearer {token.get_secret_value()}")
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if head.split(b" ")[1:2] != [b"200"]:
        raise EngineError(
            "the model did not answer the warm-up",
            why=body.decode(errors="replace") or "the connection was closed",
            fix="see the lines of the engine in the unit's log",
        )
