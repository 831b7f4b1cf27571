"""
The request bodies of OpenAI's routes, and of /tokenize and /detokenize.

Source: OpenAI's API reference and the parameters of its Python client 3.57, read 2026-11-26; the
fields that OpenAI does not have are those of vLLM.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from runtime.engines.base.sampling import MAX_BIASED, MAX_LOGPROBS, SamplingParams
from runtime.server.grammars import AskedGrammar
from runtime.server.neutral import Neutral
from runtime.server.prompts import Conversation, Prompt
from runtime.server.schemas import (
    MOST_TOKENS,
    WHOLE,
    Body,
    BodyBounds,
    Priority,
    Stops,
    Strict,
    whole,
)
from runtime.server.structured_bodies import OneGrammar, Replaced, ResponseFormat
from runtime.server.text import is_unicode
from runtime.server.tool_bodies import Choice, Tools, use_of
from runtime.tools import Tool, ToolUse

MAX_MESSAGES = 2048
MAX_PARTS = 1024  # of one message
MAX_PROMPTS = 128  # of one request
MAX_CHOICES = 16  # of one prompt

CHAT_BOUNDS = BodyBounds(strings=1 << 15, containers=1 << 13, structure_bytes=1 << 18)
# Token ids are structure: some 131,072 of them, the longest contexts.
TOKENS_BOUNDS = BodyBounds(strings=1 << 12, containers=1 << 12, structure_bytes=1 << 20)

Name = Annotated[str, Field(max_length=256)]
_SEEDS = 2**63
MAX_STOP_TOKENS = 64  # of one request
LEAST_REPETITION, MAX_REPETITION = 0.01, 100.0
MAX_COMPLETION_LOGPROBS = 5  # OpenAI's limit


class TextPart(Strict):
    """
    Attributes:
        prompt_cache_breakpoint: Accepted, without an effect: every prefix is cached.
    """

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = Field(default=None, exclude=True)


# The tags are no part of a field's path: `body.TRIED_TYPE`.
Content = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[
        list[TextPart],
        Field(min_length=1, max_length=MAX_PARTS, fail_fast=True),
        Tag("list[TextPart]"),
    ],
    Discriminator(lambda value: "list[TextPart]" if isinstance(value, list) else "str"),
]


class FunctionCall(Strict):
    """
    Attributes:
        parsed_arguments: What helpers of OpenAI's client add.
    """

    name: Name
    arguments: str
    parsed_arguments: Any = Field(default=None, exclude=True)


class ToolCall(Strict):
    """
    Attributes:
        index: Of a stream's delta, which clients send back as it came.
    """

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Any = Field(default=None, exclude=True)


# As `_has_content` checks it.
_OR_CALLS: JsonDict = {
    "anyOf": [
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
        {
            "required": ["tool_calls"],
            "properties": {
                "role": {"const": "assistant"},
                "tool_calls": {"type": "array", "minItems": 1},
            },
        },
    ]
}


def _has_content(message: "Message") -> "Message":
    if message.content is None and (message.role != "assistant" or not message.tool_calls):
        raise PydanticCustomError("no_content", "content is missing")
    return message


class Message(Strict):
    """
    One message of a conversation.

    Attributes:
        audio, function_call, refusal, annotations, parsed: What OpenAI's client sends back of an
            answer.
    """

    model_config = ConfigDict(json_schema_extra=_OR_CALLS)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    refusal: Annotated[Any, Neutral()] = None
    audio: Annotated[Any, Neutral()] = None
    annotations: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral()] = None
    parsed: Any = Field(default=None, exclude=True)

    def as_document(self) -> dict[str, Any]:
        """
        Return the message as a chat template reads it.
        """
        document = self.model_dump(exclude_unset=True)
        # OpenAI's newer name of the role; published templates know the older one.
        return document | {"role": "system"} if self.role == "developer" else document


Messages = Annotated[
    list[Annotated[Message, AfterValidator(_has_content)]],
    Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Neutral(False)] = None


def _with_a_stream(options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
    if options is not None and not info.data.get("stream"):
        raise PydanticCustomError("no_stream", "only with stream: true")
    return options


def _with_logprobs(top: int | None, info: ValidationInfo) -> int | None:
    if top and not info.data.get("logprobs"):
        raise PydanticCustomError("no_logprobs", "only with logprobs: true")
    return top


def _none_with_echo(max_tokens: int | None, info: ValidationInfo) -> int | None:
    if max_tokens == 0 and not info.data.get("echo"):
        raise PydanticCustomError("no_echo", "0 only with echo: true; else at least 1")
    return max_tokens


TokenId = Annotated[int, Field(ge=0, le=MOST_TOKENS), WHOLE]
StopTokens = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS, fail_fast=True)]
# As OpenAI writes it: token ids are keys, so they are texts.
LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")],
        Annotated[float, Field(ge=-100, le=100)],
    ],
    Field(max_length=MAX_BIASED, json_schema_extra={"additionalProperties": False}),
]


class _Sampled(Body):
    """
    What chat and completions have in common.

    Attributes:
        user, metadata, store, service_tier: Accepted, without an effect.
    """

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS), WHOLE] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, AfterValidator(_with_a_stream)] = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    priority: Priority | None = None

    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=LEAST_REPETITION, le=MAX_REPETITION)
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS), WHOLE] | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS), WHOLE] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: StopTokens | None = None
    skip_special_tokens: bool | None = None
    logit_bias: LogitBias | None = None
    # Behind the fields that they exclude.
    response_format: ResponseFormat = None
    structured_outputs: OneGrammar = None
    guided_json: Annotated[Any, Replaced("structured_outputs.json")] = None
    guided_regex: Annotated[Any, Replaced("structured_outputs.regex")] = None
    guided_choice: Annotated[Any, Replaced("structured_outputs.choice")] = None
    guided_grammar: Annotated[Any, Replaced("structured_outputs.grammar")] = None

    @property
    def grammar(self) -> AskedGrammar | None:
        """
        What each answer must match.
        """
        asked = self.response_format.asked if self.response_format is not None else None
        if asked is None and self.structured_outputs is not None:
            asked = self.structured_outputs.asked
        return asked

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def skips_special(self) -> bool:
        return self.skip_special_tokens is not False

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling(self, max_tokens: int, choice: int, logprobs: int | None) -> SamplingParams:
        """
        Return the parameters of one choice: with a seed each draws others.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        if top_p == 0:  # the likeliest token alone
            temperature, top_p = 0.0, 1.0
        seed = None if self.seed is None else (self.seed + choice) % _SEEDS
        return SamplingParams(
            max_tokens,
            temperature,
            top_p,
            seed,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


def _conversation(
    messages: list[Message],
    add_generation_prompt: bool | None,
    kwargs: dict[str, Any] | None,
    tools: tuple[Tool, ...] = (),
) -> Conversation:
    return Conversation(
        tuple(message.as_document() for message in messages),
        adds_generation_prompt=add_generation_prompt is not False,
        kwargs=kwargs or {},
        tools=tuple(tool.document for tool in tools) or None,
    )


class ChatBody(_Sampled):
    """
    `POST /v1/chat/completions`.
    """

    BOUNDS: ClassVar[BodyBounds] = CHAT_BOUNDS

    messages: Messages
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] | None = None
    tools: Tools = None
    tool_choice: Choice = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    logprobs: bool | None = None
    top_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None, AfterValidator(_with_logprobs)
    ] = None
    functions: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral("none", "auto")] = None
    modalities: Annotated[Any, Neutral(["text"])] = None
    audio: Annotated[Any, Neutral()] = None
    prediction: Annotated[Any, Neutral()] = None
    moderation: Annotated[Any, Neutral()] = None
    include_reasoning: Annotated[Any, Neutral(True)] = None
    reasoning_effort: Annotated[Any, Neutral("none")] = None
    verbosity: Annotated[Any, Neutral("medium")] = None
    web_search_options: Annotated[Any, Neutral()] = None
    continue_final_message: Annotated[Any, Neutral(False)] = None

    @property
    def tool_use(self) -> ToolUse | None:
        """
        What the model may call; None for a prompt without tools.
        """
        is_parallel = self.parallel_tool_calls is not False
        return use_of(self.tools, self.tool_choice, is_parallel=is_parallel)

    @property
    def conversation(self) -> Conversation:
        return _conversation(
            self.messages,
            self.add_generation_prompt,
            self.chat_template_kwargs,
            self.tool_use.tools if self.tool_use else (),
        )

    @property
    def most_tokens(self) -> int | None:
        """
        Most tokens of an answer; None for what is left of the context.
        """
        most = self.max_completion_tokens
        return self.max_tokens if most is None else most

    def params(self, choice: int) -> SamplingParams:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._sampling(self.most_tokens or 1, choice, logprobs)


def prompts_type(most: int) -> Any:
    """
    Return the type of one or up to *most* prompts, each a text or a list of token ids.
    """

    def read(value: object) -> tuple[Prompt, ...]:
        if isinstance(value, str) or _is_tokens(value):
            return (_read_prompt(value),)
        if isinstance(value, list) and 0 < len(value) <= most:
            return tuple(map(_read_prompt, value))
        words = f"should be a text, a list of token ids, or a list of at most {most} of either"
        raise PydanticCustomError("prompt", words)

    schema = (
        _Text | _Tokens | Annotated[list[_Text | _Tokens], Field(min_length=1, max_length=most)]
    )
    return Annotated[tuple[Prompt, ...], PlainValidator(read, json_schema_input_type=schema)]


def _read_prompt(value: object) -> Prompt:
    if isinstance(value, str) and value and is_unicode(value):
        return value
    if isinstance(value, list) and _is_tokens(value):
        return tuple(map(int, value))
    raise PydanticCustomError("prompt", _PROMPT)


def _is_tokens(value: object) -> bool:
    if not isinstance(value, list):
        return False
    kinds = set(map(type, value))  # of each: some 131,072 may be there
    return kinds == {int} or (
        kinds in ({float}, {int, float}) and all(isinstance(whole(each), int) for each in value)
    )


def _read_tokens(value: object) -> object:
    return list(map(int, value)) if isinstance(value, list) and _is_tokens(value) else value


_PROMPT = "should be a text or a list of token ids, and not empty"
_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionBody(_Sampled):
    """
    `POST /v1/completions`.
    """

    BOUNDS: ClassVar[BodyBounds] = TOKENS_BOUNDS

    prompt: prompts_type(MAX_PROMPTS)  # type: ignore[valid-type]
    echo: bool | None = None
    max_tokens: Annotated[
        Annotated[int, Field(ge=0, le=MOST_TOKENS), WHOLE] | None, AfterValidator(_none_with_echo)
    ] = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS), WHOLE] | None = None

    best_of: Annotated[Any, Neutral(1)] = None
    suffix: Annotated[Any, Neutral("")] = None

    def params(self, choice: int) -> SamplingParams:
        most = 16 if self.max_tokens is None else self.max_tokens
        params = self._sampling(most, choice, self.logprobs)
        if not self.echo or self.logprobs is None:
            return params
        # Readers of the prompt's scores ask for one token and drop the last score: it has to be
        # there, though it be an end token.
        ignores_eos = params.ignore_eos or most == 1
        return replace(params, prompt_logprobs=self.logprobs, ignore_eos=ignores_eos)


class TokenizeBody(Body):
    """
    `POST /tokenize`: a text, or a conversation.
    """

    BOUNDS: ClassVar[BodyBounds] = CHAT_BOUNDS
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            ]
        }
    )

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Annotated[Any, Neutral(False)] = None

    @property
    def content(self) -> str | Conversation | None:
        """
        Return what to tokenize; None unless the body has exactly one of the two.
        """
        if self.messages is None or self.prompt is not None:
            return self.prompt if self.messages is None else None
        return _conversation(self.messages, self.add_generation_prompt, self.chat_template_kwargs)


class DetokenizeBody(Body):
    """
    `POST /detokenize`.
    """

    BOUNDS: ClassVar[BodyBounds] = TOKENS_BOUNDS

    tokens: Annotated[
        list[int],
        Field(fail_fast=True),
        BeforeValidator(_read_tokens, json_schema_input_type=list[int]),
    ]
