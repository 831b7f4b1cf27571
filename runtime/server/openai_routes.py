"""
OpenAI's routes, and vLLM's /tokenize and /detokenize.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response

from runtime.contract import CHAT, COMPLETIONS, DETOKENIZE, MODELS, TOKENIZE
from runtime.server.admission import Refusal
from runtime.server.answers import AnswerForm
from runtime.server.errors import Failed
from runtime.server.event_stream import unless_gone
from runtime.server.generation import Generator
from runtime.server.grammars import AskedGrammar
from runtime.server.middleware import outcome_of
from runtime.server.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from runtime.server.openai_documents import (
    Asked,
    ChatFormat,
    CompletionFormat,
    Format,
    events,
    whole,
)
from runtime.server.requests import GenerationRequest, Place, left_on_failure
from runtime.server.serving import Serving, admit, json_response, stream
from runtime.server.structured_bodies import EXCLUDED
from runtime.structured.grammar import GrammarKind
from runtime.tools import schema_of, with_observations

MAX_ECHOED = 1 << 20  # characters of prompts that the answers of one request repeat
MAX_SCORED = 1 << 14  # tokens of these, with log probabilities


def add_openai(app: FastAPI, serving: Serving) -> None:
    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        asked = await admit(serving, request, ChatBody, _ask_chat)
        id = outcome_of(request.scope).request_id
        format = ChatFormat(id, _names(serving), asked.form)
        return await _answer(serving, request, asked, format)

    @app.post(COMPLETIONS)
    async def completions(request: Request) -> Response:
        asked = await admit(serving, request, CompletionBody, _ask_completions)
        id = outcome_of(request.scope).request_id
        format = CompletionFormat(id, _names(serving), asked.prompts)
        return await _answer(serving, request, asked, format)

    @app.get(MODELS)
    async def models() -> Response:
        return json_response({"object": "list", "data": [_model(serving)]})

    @app.get(MODELS + "/{name:path}")
    async def model(name: str) -> Response:
        serving.check_model(name)
        return json_response(_model(serving))

    @app.post(TOKENIZE)
    async def tokenize(request: Request) -> Response:
        return json_response(await admit(serving, request, TokenizeBody, _tokenize))

    @app.post(DETOKENIZE)
    async def detokenize(request: Request) -> Response:
        return json_response(await admit(serving, request, DetokenizeBody, _detokenize))


async def _answer(serving: Serving, request: Request, asked: Asked, format: Format) -> Response:
    generator = serving.serving_generator()
    if asked.is_stream:
        return await stream(request, events(generator, asked, format))
    body = await unless_gone(request, whole(generator, asked, format))
    return Response(body, media_type="application/json")


async def _ask_chat(generator: Generator, body: ChatBody) -> Asked:
    params = [body.params(choice) for choice in range(body.choices)]
    form = _form_of(generator, body)
    grammar = _calls_grammar(body) if form.is_bound else body.grammar
    conversation = body.conversation
    if generator.tool_syntax is not None and generator.tool_syntax.has_observations:
        messages = with_observations(conversation.messages)
        conversation = replace(conversation, messages=messages)
    request = GenerationRequest(
        conversation,
        params[0],
        tuple(body.stop or ()),
        fills_context=body.most_tokens is None,
        shows_marks=not form.is_plain,
        skips_special=body.skips_special,
        grammar=grammar,
        priority=body.priority or 0,
    )
    requests = await generator.choices(request, params, generator.places(body.choices))
    if not form.is_plain:
        form = replace(form, is_in_reasoning=generator.is_in_reasoning(requests[0]))
    tokens = len(requests[0].prompt)
    return Asked(
        requests,
        tokens,
        bool(body.stream),
        body.includes_usage,
        form=form,
        choices=body.choices,
    )


def _form_of(generator: Generator, body: ChatBody) -> AnswerForm:
    """
    Raises:
        Failed: 400: the body has tools, and the model knows none.
    """
    use, separates_reasoning = body.tool_use, bool(body.separate_reasoning)
    if use is None:
        return AnswerForm(separates_reasoning=separates_reasoning)
    if generator.tool_syntax is None:
        message = (
            "tools: not supported by this model: its chat template reads none, or no parser of "
            "its calls is known (service.tool_parser)"
        )
        raise Failed(Refusal(400, "tools_not_supported", message, param="tools"))
    is_bound = use.choice != "auto"
    return AnswerForm(use, generator.tool_syntax.parser, separates_reasoning, is_bound=is_bound)


def _calls_grammar(body: ChatBody) -> AskedGrammar:
    """
    Return the grammar of an answer that has to be calls.

    Raises:
        Failed: 400: the body asks for another structure too, or a tool is nested too deeply.
    """
    if (other := body.grammar) is not None:
        message = f"{other.field}: not beside a tool_choice that requires calls; send one of them"
        raise Failed(Refusal(400, "invalid_request", message, param=other.field))
    for name in EXCLUDED:
        if getattr(body, name):
            message = f"{name}: not beside a tool_choice that requires calls"
            raise Failed(Refusal(400, "invalid_request", message, param=name))
    assert body.tool_use is not None, "the form is bound"
    try:
        schema = schema_of(body.tool_use)
    except ValueError as error:
        refusal = Refusal(400, "invalid_request", f"tools: {error}", param="tools")
        raise Failed(refusal) from None
    return AskedGrammar("tools", GrammarKind.JSON, json.dumps(schema))


async def _ask_completions(generator: Generator, body: CompletionBody) -> Asked:
    places = generator.places(len(body.prompt) * body.choices)
    with left_on_failure(places):
        return await _read_completions(generator, body, places)


async def _read_completions(
    generator: Generator, body: CompletionBody, places: Sequence[Place]
) -> Asked:
    requests, prompts, prompt_tokens, echoed, scored = [], [], 0, 0, 0
    for number, prompt in enumerate(body.prompt):
        # Each draws its own numbers, as if it had been sent alone with another seed.
        first = number * body.choices
        params = [body.params(first + choice) for choice in range(body.choices)]
        request = GenerationRequest(
            prompt,
            params[0],
            tuple(body.stop or ()),
            skips_special=body.skips_special,
            grammar=body.grammar,
            priority=body.priority or 0,
        )
        own = places[first : first + body.choices]
        admitted = await generator.choices(request, params, own)
        prompt_tokens += len(admitted[0].prompt)
        if body.echo:
            scored += len(admitted[0].prompt) * body.choices
            if body.logprobs is not None and scored > MAX_SCORED:
                message = f"logprobs: with echo, all prompts have more than {MAX_SCORED} tokens"
                raise Failed(Refusal(400, "invalid_request", message, param="logprobs"))
            repeated = await generator.echo(request, has_offsets=body.logprobs is not None)
            echoed += len(repeated.text) * body.choices
            if echoed > MAX_ECHOED:
                message = f"echo: the prompts of all answers have more than {MAX_ECHOED} characters"
                raise Failed(Refusal(400, "invalid_request", message, param="echo"))
            admitted = [replace(each, offsets=repeated.offsets) for each in admitted]
            prompts += [repeated.text] * body.choices
        requests += admitted
        await asyncio.sleep(0)  # the loop goes on between two prompts
    return Asked(
        requests,
        prompt_tokens,
        bool(body.stream),
        body.includes_usage,
        prompts,
        choices=body.choices,
    )


async def _tokenize(generator: Generator, body: TokenizeBody) -> dict[str, Any]:
    content = body.content
    if content is None:
        message = "prompt: send either prompt or messages"
        raise Failed(Refusal(400, "invalid_request", message, param="prompt"))
    adds_special = body.add_special_tokens is not False
    tokens = await generator.tokenize(content, adds_special=adds_special)
    return {
        "count": len(tokens),
        "max_model_len": generator.context_tokens,
        "tokens": list(tokens),
        "token_strs": None,
    }


async def _detokenize(generator: Generator, body: DetokenizeBody) -> dict[str, Any]:
    return {"prompt": await generator.detokenize(body.tokens)}


def _model(serving: Serving) -> dict[str, Any]:
    config, generator = serving.settings.config, serving.generator
    return {
        "id": config.model_name,
        "object": "model",
        "created": serving.since,
        "owned_by": "slipway",
        "version": config.version,
        "max_model_len": generator.context_tokens if generator else None,
    }


def _names(serving: Serving) -> dict[str, Any]:
    config = serving.settings.config
    return {"created": int(time.time()), "model": config.model_name, "version": config.version}
