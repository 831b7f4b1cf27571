"""
From a prompt to text: admission, tokenizing, the engine, stop strings, deadlines.

Every admitted request ends: with its text, or with one Failed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from runtime.chat import ChatTemplate
from runtime.contract import CLIENT_DEADLINE, QUEUE_FULL
from runtime.engines.base.client import Client
from runtime.engines.base.in_flight import TokenStream
from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import SamplingParams
from runtime.server.admission import (
    AdmissionLimits,
    CurrentLoad,
    Refusal,
    refuse,
    refuse_share,
    time_allowed_s,
)
from runtime.server.answer_text import AnswerText
from runtime.server.caller import current_caller
from runtime.server.echo import EchoedPrompt
from runtime.server.embedder import Embedder
from runtime.server.errors import Failed
from runtime.server.failures import failure
from runtime.server.grammars import GrammarReader
from runtime.server.prompts import Conversation, PromptReader
from runtime.server.requests import (
    AdmittedRequest,
    GenerationRequest,
    Place,
    SharedPrompt,
    TextDelta,
    left_on_failure,
)
from runtime.server.scores import ScoredToken, score_prompt
from runtime.server.text import Codec, Decoder
from runtime.tools import THINK, THINK_END, ToolSyntax, special_tokens_of

LONG_SUBMIT_TOKENS = 1024  # of a prompt; sending a whole context to the engine takes 10 ms
DECODED_AT_ONCE = 4096  # tokens of an answer, some milliseconds
DECODED_ALONE = 128  # the same with log probabilities or stop texts: each is decoded by itself
Value = TypeVar("Value")
ONLY_EMBEDS = "this model generates no text; it makes embeddings: POST /v1/embeddings"
NO_PRIORITIES = (
    "priority: not supported by this runtime; leave it out, or send 0 (with engine: vllm it needs "
    "--scheduling-policy=priority in vllm_args)"
)
_NO_ANSWER = SamplingParams(max_tokens=0)
_NO_LOAD = CurrentLoad(0, 0.0)
_MARK_TOKENS = 16  # a mark of reasoning and the white space after it have fewer


class Generator:
    """
    Answers prompts with one model.

    Args:
        on_first_token: Called with the seconds from the start of a request.
        template: None for a model without a chat template.
        tool_syntax: How the model writes calls; None for a model that knows no tools.
        generates: Whether it generates text.
        grammars: None for a model without structured output.

    Attributes:
        embedder: None for a model that makes no embeddings.
        prompts: Reads the prompts of all its requests.
        promised: Places of admitted requests that the engine does not have yet.
    """

    def __init__(
        self,
        engine: Client,
        codec: Codec,
        limits: AdmissionLimits,
        on_first_token: Callable[[float], None],
        template: ChatTemplate | None = None,
        tool_syntax: ToolSyntax | None = None,
        generates: bool = True,
        grammars: GrammarReader | None = None,
    ) -> None:
        self.tool_syntax = tool_syntax
        marks = special_tokens_of(tool_syntax.parser) if tool_syntax else ()
        self._verbatim = codec.verbatim()
        self._with_marks = codec.keeping((THINK, THINK_END, *marks))
        self._engine, self._codec, self._limits = engine, codec, limits
        self.prompts = PromptReader(codec, template, limits.vocabulary)
        self.generates = generates
        self.embedder: Embedder | None = None
        self._grammars = grammars or GrammarReader(None)
        self._on_first_token = on_first_token
        self._mean_s = 0.0
        self.promised = 0

    @property
    def load(self) -> CurrentLoad:
        in_flight = self._engine.in_flight + self.promised + self.prompts.given_up
        return CurrentLoad(in_flight, self._mean_s)

    def make_embeddings(self, dimensions: int, shorter_dimensions: Sequence[int]) -> None:
        """
        From now on make embeddings too, of *dimensions*.
        """
        self.embedder = Embedder(
            self._engine, self.prompts, self._limits, dimensions, shorter_dimensions
        )

    def hold(self) -> AbstractContextManager[None]:
        """
        Keep a drain waiting for a request that is not in the engine yet.
        """
        return self._engine.hold()

    @property
    def context_tokens(self) -> int:
        return self._limits.context_tokens

    def refuse_if_full(self) -> None:
        """
        Raises:
            Failed: The queue is full: a body need not be read.
        """
        if refused := refuse(1, 0, self.load, self._limits):
            raise Failed(refused)

    def places(self, count: int) -> list[Place]:
        """
        Return places for *count* answers of one request, which are all taken at once.

        Raises:
            Failed: They are more than ever wait together, or than there is room for now.
        """
        most = self._limits.max_batch_requests + self._limits.max_queue_requests
        if count > most:
            message = f"{count} answers at once; {most} is the most"
            raise Failed(Refusal(400, "too_many_answers", message, param="n"))
        load = self.load
        if load.in_flight + count > most:
            full = CurrentLoad(max(load.in_flight, most), load.mean_s)
            if refused := refuse(1, 0, full, self._limits):
                raise Failed(refused)
        caller = current_caller()
        if caller.key is not None:
            held = caller.places[caller.name]
            if refused := refuse_share(held, count, load, self._limits):
                raise Failed(refused)
            caller.hold(count)
        return [Place(self) for _ in range(count)]

    async def admit(self, request: GenerationRequest) -> AdmittedRequest:
        """
        Return *request* with its prompt in tokens.

        Raises:
            Failed: It is refused, or preparing it took longer than it has time.
        """
        [admitted] = await self.choices(request, [request.params], self.places(1))
        return admitted

    async def choices(
        self,
        request: GenerationRequest,
        params: Sequence[SamplingParams],
        places: Sequence[Place],
    ) -> list[AdmittedRequest]:
        """
        Return *request* once for each of *params*, its prompt prepared once.

        Raises:
            Failed: As `admit`.
        """
        started_s = time.monotonic()
        caller = current_caller()
        asked_s = [s for s in (request.timeout_s, caller.deadline_s) if s is not None]
        allowed_s = time_allowed_s(min(asked_s, default=None), self._limits)
        excuse = CLIENT_DEADLINE if allowed_s < self._limits.request_timeout_s else None
        with left_on_failure(places):
            if not self.generates:
                raise Failed(Refusal(400, "not_supported", ONLY_EMBEDS, param="model"))
            if request.priority and not self._engine.has_priorities:
                raise Failed(Refusal(400, "not_supported", NO_PRIORITIES, param="priority"))
            prompt = await self._read_prompt(request, started_s + allowed_s, excuse)
            self._refuse_long(len(prompt), request)
            most = 0 if request.fills_context else sum(each.max_tokens for each in params)
            if request.fills_context:
                tokens = self._limits.context_tokens - len(prompt)
                params = [replace(each, max_tokens=tokens) for each in params]
            self._check_params(params[0])
            # Before the grammar: a key without tokens must not have it checked.  If the request
            # is refused after all, `serving.admit` gives them back.
            caller.take_prompt(len(prompt), most)
            if request.grammar is not None:
                reading = self._grammars.read(request.grammar)
                grammar = await _by(started_s + allowed_s, reading, excuse)
                params = [replace(each, grammar=grammar) for each in params]
        shared = SharedPrompt() if len(params) > 1 else None
        return [
            AdmittedRequest(
                prompt,
                each,
                request.stop,
                started_s,
                allowed_s,
                place,
                excuse,
                request.shows_marks,
                caller,
                shared,
                request.skips_special,
                request.priority,
            )
            for each, place in zip(params, places, strict=True)
        ]

    def is_in_reasoning(self, request: AdmittedRequest) -> bool:
        """
        Return whether the prompt ends with the mark that reasoning begins with.
        """
        end = self._with_marks.decode(request.prompt[-_MARK_TOKENS:])
        return end.rstrip().endswith(THINK)

    async def tokenize(
        self, prompt: str | Conversation, *, adds_special: bool = True
    ) -> Sequence[int]:
        """
        Return the tokens of *prompt*, which must fit the context.

        Raises:
            Failed: As `admit`.
        """
        request = GenerationRequest(prompt, _NO_ANSWER, adds_special=adds_special)
        late_s = time.monotonic() + self._limits.request_timeout_s
        with self._place():
            tokens = await self._read_prompt(request, late_s)
        self._refuse_long(max(len(tokens), 1), request)
        return tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """
        Raises:
            Failed: 400: they are too many, or the model has no such tokens.  503: there is no room
                for it now.
        """
        with self._place():
            if refused := refuse(max(len(tokens), 1), 0, _NO_LOAD, self._limits, field="tokens"):
                raise Failed(refused)
            late_s = time.monotonic() + self._limits.request_timeout_s
            return await _by(late_s, self.prompts.text_of(tokens))

    async def echo(self, request: GenerationRequest, *, has_offsets: bool) -> EchoedPrompt:
        """
        Return the text that an answer of *request*, which was admitted, repeats.

        Raises:
            Failed: It took too long.
        """
        assert not isinstance(request.prompt, Conversation)
        late_s = time.monotonic() + self._limits.request_timeout_s
        reading = self.prompts.echo(
            request.prompt,
            self._codec if request.skips_special else self._verbatim,
            adds_special=request.adds_special,
            has_offsets=has_offsets,
        )
        return await _by(late_s, reading)

    async def whole(self, request: AdmittedRequest) -> TextDelta:
        """
        Return the whole answer as one delta.
        """
        # With stop strings each token is checked as it comes.
        deltas = [delta async for delta in self.deltas(request, at_once=not request.stop)]
        last = deltas[-1]
        text = "".join(delta.text for delta in deltas)
        scores = None
        if last.scores is not None:
            scores = [each for delta in deltas for each in delta.scores or ()]
        return replace(last, text=text, scores=scores, prompt_scores=deltas[0].prompt_scores)

    async def all(self, requests: Sequence[AdmittedRequest]) -> list[TextDelta]:
        """
        Return the whole answers of *requests*.

        Raises:
            Failed: One of them did; the others are cancelled.
        """
        tasks: list[asyncio.Task[TextDelta]] = []
        try:
            for request in requests:
                tasks.append(asyncio.create_task(self.whole(request)))
                if len(request.prompt) > LONG_SUBMIT_TOKENS:
                    await asyncio.sleep(0)  # one in each turn of the loop
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def deltas(
        self, request: AdmittedRequest, *, at_once: bool = False
    ) -> AsyncGenerator[TextDelta, None]:
        """
        Yield the answer as it is generated, or *at_once*; the last delta has a finish_reason.

        Raises:
            Failed: Late, or failed in the engine.
        """
        shared = request.shared
        prefix_of = shared.first if shared else None
        id, stream = self._engine.submit(
            request.prompt,
            request.params,
            request.allowed_s,
            request.caller.share,
            prefix_of,
            request.priority,
        )
        if shared and shared.first is None:
            shared.first = id
        request.place.leave()
        try:
            if at_once:
                await _by(request.give_up_s, stream.end())
            async with aclosing(self._read(stream, request)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._engine.cancel(id)
            usage = request.caller.usage
            usage.generated_tokens += len(stream.tokens)
            if shared is None or shared.first == id:  # a prompt counts once
                usage.cached_tokens += stream.cached_tokens or 0
            if stream.first_at_s is not None:
                self._on_first_token(stream.first_at_s - request.started_s)
            took_s = time.monotonic() - request.started_s
            self._mean_s += (took_s - self._mean_s) * (0.1 if self._mean_s else 1.0)

    @contextmanager
    def _place(self) -> Iterator[None]:
        [place] = self.places(1)
        try:
            yield
        finally:
            place.leave()

    async def _read(
        self, stream: TokenStream, request: AdmittedRequest
    ) -> AsyncGenerator[TextDelta, None]:
        answer = AnswerText(
            self._codec,
            self._decoder_of(request),
            request.prompt,
            request.stop,
            is_scored=request.params.logprobs is not None,
        )
        seen = 0
        prompt_scores: Sequence[ScoredToken] | None = None

        def delta(text: str, finish_reason: str | None = None) -> TextDelta:
            return TextDelta(
                text,
                answer.tokens,
                len(request.prompt),
                finish_reason,
                stream.cached_tokens,
                answer.take_scores(is_last=finish_reason is not None),
                prompt_scores,
            )

        is_alone = request.params.logprobs is not None or request.stop
        most = DECODED_ALONE if is_alone else DECODED_AT_ONCE
        while tokens := (await _by(request.give_up_s, stream.more(seen)))[:most]:
            if len(tokens) == most:
                await asyncio.sleep(0)  # the loop goes on within a long answer
            if not seen:
                prompt_scores = await self._score_prompt(stream, request)
            logprobs = stream.logprobs[seen : seen + len(tokens)]
            seen += len(tokens)
            text = answer.add(tokens, logprobs)
            if answer.is_stopped:
                yield delta(text, "stop")
                return
            if text:
                yield delta(text)
                prompt_scores = None
        assert stream.finish_reason is not None
        if not stream.finish_reason.is_good:
            is_late = stream.finish_reason is FinishReason.EXPIRED
            excuse = request.late_excuse if is_late else None
            waited = self._engine.limits_keys and request.caller.is_over_concurrency
            if is_late and not seen and waited:
                excuse = excuse or QUEUE_FULL  # for others of its key
            raise Failed(failure(stream.finish_reason, stream.detail, excuse))
        if not seen:
            prompt_scores = await self._score_prompt(stream, request)
        text = answer.end()
        reason = "stop" if answer.is_stopped else stream.finish_reason.value
        yield delta(text, reason)

    async def _score_prompt(
        self, stream: TokenStream, request: AdmittedRequest
    ) -> Sequence[ScoredToken] | None:
        if request.params.prompt_logprobs is None:
            return None
        args = self._codec, request.prompt, stream.prompt_logprobs, request.offsets
        return await asyncio.to_thread(score_prompt, *args)

    def _decoder_of(self, request: AdmittedRequest) -> Decoder:
        if not request.skips_special:
            return self._verbatim
        return self._with_marks if request.shows_marks else self._codec

    async def _read_prompt(
        self, request: GenerationRequest, late_s: float, excuse: str | None = None
    ) -> Sequence[int]:
        reading = self.prompts.tokens(
            request.prompt,
            request.field,
            adds_special=request.adds_special,
            # By its size alone: tokenizing takes seconds, counting milliseconds.
            enough=self._limits.context_tokens + 1,
            check=lambda least: self._refuse_long(max(least, 1), request),
        )
        return await _by(late_s, reading, excuse)

    def _check_params(self, params: SamplingParams) -> None:
        """
        Raises:
            Failed: 400: a token id without a logit, or more min_tokens than max_tokens.
        """
        if params.prompt_logprobs is not None and not self._engine.scores_prompts:
            message = "logprobs: not with echo: this engine computes none of a prompt"
            raise Failed(Refusal(400, "not_supported", message, param="logprobs"))
        if params.max_tokens == 0 and not self._engine.scores_prompts:
            message = "max_tokens: at least 1 with this engine"
            raise Failed(Refusal(400, "not_supported", message, param="max_tokens"))
        named = {
            "logit_bias": [token for token, _ in params.logit_bias],
            "stop_token_ids": params.stop_token_ids,
        }
        most = self._limits.vocabulary
        for name, tokens in named.items():
            if most is not None and any(token >= most for token in tokens):
                message = f"{name} has a token id that the model does not have"
                raise Failed(Refusal(400, "unknown_token", message, param=name))
        if params.min_tokens > params.max_tokens:
            message = f"min_tokens: {params.min_tokens}; the answer has at most {params.max_tokens}"
            raise Failed(Refusal(400, "invalid_request", message, param="min_tokens"))

    def _refuse_long(self, prompt_tokens: int, request: GenerationRequest) -> None:
        most = request.params.max_tokens
        if refused := refuse(prompt_tokens, most, _NO_LOAD, self._limits, field=request.field):
            raise Failed(refused)


async def _by(
    give_up_s: float, awaited: Coroutine[Any, Any, Value], excuse: str | None = None
) -> Value:
    # Around each wait and not around the generator: a timeout must not fire while its reader,
    # which may be the same task, waits for something else.
    try:
        async with asyncio.timeout(give_up_s - time.monotonic()):
            return await awaited
    except TimeoutError:
        late = failure(FinishReason.EXPIRED, "the engine did not answer", excuse)
        raise Failed(late) from None
