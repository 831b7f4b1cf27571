"""
What the routes share: the state of the process, how a body comes in and how an answer goes out.
"""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import SecretStr

from runtime.contract import TIMEOUT_HEADER
from runtime.server.access import deadline_s
from runtime.server.admission import Refusal
from runtime.server.body import UploadBudget, parse
from runtime.server.caller import current_caller
from runtime.server.config import Settings
from runtime.server.errors import Failed
from runtime.server.event_stream import Document, EventStream, unless_gone
from runtime.server.generation import Generator
from runtime.server.generation_defaults import with_defaults
from runtime.server.json_pieces import dumps
from runtime.server.key_watch import KeyWatch
from runtime.server.lifecycle import Life, Phase
from runtime.server.metrics import Metrics
from runtime.server.middleware import outcome_of
from runtime.server.requests import GenerationRequest
from runtime.server.schemas import Body

Admitted = TypeVar("Admitted")
Model = TypeVar("Model", bound=Body)

WHY_NOT = {
    Phase.LOADING: "the model is being loaded",
    Phase.WARMING: "the model is warming up",
    Phase.DRAINING: "the runtime is draining",
    Phase.STOPPED: "the runtime is stopping",
    Phase.FAILED: "the engine is gone",
}


@dataclass(slots=True)
class Serving:
    """
    State that the routes share.

    Attributes:
        generator: None until the model is loaded.
        check: Request of the deep health check.
        since: When the model was loaded, seconds of the Unix epoch.
        keys: The API keys that are in force.
        own_token: What the warm-up of this process sends.
        defaults: Of fields that a body leaves out, by field.
    """

    settings: Settings
    life: Life
    metrics: Metrics
    check: GenerationRequest
    generator: Generator | None = None
    since: int = 0
    uploads: UploadBudget = field(default_factory=UploadBudget)
    keys: KeyWatch = field(default_factory=lambda: KeyWatch(None))
    own_token: SecretStr = field(default_factory=lambda: SecretStr(secrets.token_urlsafe(32)))
    defaults: Mapping[str, float] = field(default_factory=dict)

    def ready_generator(self, also: Phase = Phase.READY) -> Generator:
        """
        Return the generator of a runtime that is ready, or in the phase *also*.

        Raises:
            Failed: 503.
        """
        phase = self.life.phase
        if phase in (Phase.READY, also) and self.generator is not None:
            return self.generator
        raise Failed(Refusal(503, "not_ready", WHY_NOT[phase], retry_after_s=1))

    def serving_generator(self) -> Generator:
        """
        Return the generator of a request that was admitted, which a drain waits for.

        Raises:
            Failed: 503: the drain is over, or the engine is gone.
        """
        return self.ready_generator(Phase.DRAINING)

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            Failed: 404: *name* is not the model that is served.  403: the API key may not use it.
        """
        serves = self.settings.config.model_name
        if not current_caller().may_use(serves):
            message = f"this API key does not have access to model {serves}"
            raise Failed(Refusal(403, "model_not_found", message, param="model"))
        if name not in (None, serves):
            message = f"this runtime serves {serves}, and no other model"
            raise Failed(Refusal(404, "model_not_found", message, param="model"))


def json_response(document: Any, status: int = 200) -> Response:
    return Response(dumps(document), status_code=status, media_type="application/json")


async def stream(request: Request, documents: AsyncGenerator[Document | bytes, None]) -> Response:
    """
    Answer with *documents* as server-sent events.

    The first one decides the status line: a failure before it is a plain error.
    """
    first = await unless_gone(request, anext(documents))
    return EventStream(first, documents, outcome_of(request.scope))


async def admit(
    serving: Serving,
    request: Request,
    kind: type[Model],
    admitting: Callable[[Generator, Model], Awaitable[Admitted]],
) -> Admitted:
    """
    Return what *admitting* makes of the body.

    The body and the text of its prompt are freed here: an answer may take a minute.
    """
    generator = serving.ready_generator()
    generator.refuse_if_full()
    with generator.hold(), serving.uploads.upload() as upload:
        received = await upload.receive(request.receive, request.headers)
        # Once the body has come, so that HAProxy passes on the headers of a refusal.
        current_caller().take_request()
        async with serving.uploads.reading(received):
            body = await parse(received, kind)
        serving.check_model(body.model)
        body = with_defaults(body, serving.defaults)
        _take_deadline(request, body)
        try:
            return await unless_gone(request, admitting(generator, body))
        except BaseException:
            current_caller().refund()
            raise


def _take_deadline(request: Request, body: Body) -> None:
    """
    Note how long the client waits for the answer.

    Raises:
        Failed: 400: the header is not valid.
    """
    try:
        is_stream = bool(getattr(body, "stream", False))
        current_caller().deadline_s = deadline_s(request.headers, is_stream=is_stream)
    except ValueError as error:
        refusal = Refusal(400, "invalid_request", str(error), param=TIMEOUT_HEADER)
        raise Failed(refusal) from None
