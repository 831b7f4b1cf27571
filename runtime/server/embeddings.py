"""
`POST /v1/embeddings`, as OpenAI has it.
"""

import asyncio
import base64
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastapi import FastAPI, Request, Response
from pydantic import Field

from runtime.contract import EMBEDDINGS
from runtime.server.admission import Refusal
from runtime.server.caller import current_caller
from runtime.server.embedder import Embedder, TextToEmbed
from runtime.server.errors import Failed
from runtime.server.event_stream import unless_gone
from runtime.server.generation import Generator
from runtime.server.openai_bodies import prompts_type
from runtime.server.requests import Place, left_on_failure
from runtime.server.schemas import WHOLE, Body, BodyBounds, Priority
from runtime.server.serving import Serving, admit

MAX_INPUTS = 2048  # of one request, as OpenAI has it
NOT_SUPPORTED = "this model makes no embeddings"


class EmbeddingBody(Body):
    """
    `POST /v1/embeddings`.

    Attributes:
        user: Accepted, without an effect.
    """

    BOUNDS: ClassVar[BodyBounds] = BodyBounds(
        strings=1 << 12, containers=1 << 12, structure_bytes=1 << 20
    )

    input: prompts_type(MAX_INPUTS)  # type: ignore[valid-type]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE] | None = None
    user: str | None = None
    priority: Priority | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    texts: Sequence[TextToEmbed]
    body: EmbeddingBody
    embedder: Embedder
    place: Place


def add_embeddings(app: FastAPI, serving: Serving) -> None:
    @app.post(EMBEDDINGS)
    async def embeddings(request: Request) -> Response:
        asked = await admit(serving, request, EmbeddingBody, _ask)
        body = asked.body
        try:
            work = asked.embedder.embed(asked.texts, body.dimensions)
            vectors = await unless_gone(request, work)
        finally:
            asked.place.leave()
        tokens = sum(len(text.tokens) for text in asked.texts)
        name = serving.settings.config.model_name
        is_base64 = body.encoding_format == "base64"
        content = await _document(vectors, tokens, name, is_base64=is_base64)
        return Response(content, media_type="application/json")


async def _ask(generator: Generator, body: EmbeddingBody) -> _Asked:
    embedder = generator.embedder
    if embedder is None:
        raise Failed(Refusal(400, "not_supported", NOT_SUPPORTED, param="model"))
    embedder.check_dimensions(body.dimensions)
    [place] = places = generator.places(1)
    caller = current_caller()
    with left_on_failure(places):
        texts = await embedder.read(body.input, caller.deadline_s, body.priority or 0)
        caller.take_prompt(sum(len(text.tokens) for text in texts), 0)
    return _Asked(texts, body, embedder, place)


async def _document(vectors: Sequence[bytes], tokens: int, model: str, *, is_base64: bool) -> bytes:
    pieces = []
    for index, vector in enumerate(vectors):
        shown = base64.b64encode(vector).decode() if is_base64 else list(array("f", vector))
        data = {"object": "embedding", "index": index, "embedding": shown}
        pieces.append(json.dumps(data).encode())
        await asyncio.sleep(0)  # the loop goes on: a vector takes a millisecond
    usage = json.dumps({"prompt_tokens": tokens, "total_tokens": tokens}).encode()
    head = b'{"object": "list", "model": %s, "data": [' % json.dumps(model).encode()
    return head + b", ".join(pieces) + b'], "usage": ' + usage + b"}"
