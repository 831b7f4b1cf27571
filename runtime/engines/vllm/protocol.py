"""
vLLM's requests, answers and metrics.  Pure.

Source: vLLM 0.32, `entrypoints/openai/completion` and `v1/metrics`, and a run of it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runtime.engines.base.protocol import MAX_PRIORITY, Submit
from runtime.engines.base.sampling import SamplingParams, TokenLogprobs

COMPLETIONS, HEALTH, METRICS, MODELS = "/v1/completions", "/health", "/metrics", "/v1/models"
CORE_DIED = 503  # status of HEALTH once the engine core has ended

# Gauges of its scheduler, and a counter; one of each for each engine core.
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
CACHE, STEPS = "vllm:kv_cache_usage_perc", "vllm:iteration_tokens_total_count"
SAMPLE = re.compile(r"^([\w:]+)(?:\{.*\})? (\S+)$", re.MULTILINE)

# Fields of the same name and meaning, sent where they ask for something.
_PASSED = (
    *("seed", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("stop_token_ids", "min_tokens", "ignore_eos", "logprobs"),
)
_PLAIN = vars(SamplingParams(max_tokens=1))
ID_PREFIX = "token_id:"  # what its log probabilities put before an id
STOP = "stop"  # finish_reason of an answer whose last token is an end token
DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Gauges:
    """
    Metrics of vLLM's scheduler; some of them change with every step.

    Attributes:
        cache: Used share of the KV cache; it grows with each chunk of a long prompt.
        steps: Steps that generated a token.
    """

    running: int
    waiting: int
    cache: float
    steps: int


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """
    One event of a streamed answer.

    Attributes:
        reason: vLLM's finish_reason; None if it is not the last.
        error: vLLM's message for a failed request.
        logprobs: One for each of *tokens* if the request asks for them.
    """

    tokens: Sequence[int] = ()
    reason: str | None = None
    error: str | None = None
    logprobs: Sequence[TokenLogprobs] = ()


def priority_of(request: Submit) -> int:
    """
    Return vLLM's one number: the levels of all keys, and within each the client's own numbers.

    vLLM knows no keys: where there are some, a number under 0 would put a client ahead of others.
    """
    own = max(request.priority, 0) if request.share.key else request.priority
    return request.share.level(own) * (2 * MAX_PRIORITY + 1) + own


def completion(model: str, tokens: Sequence[int], params: SamplingParams) -> dict[str, Any]:
    """
    Return the body of a request for a stream of token ids.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(tokens),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stream": True,
        "return_token_ids": True,
    }
    body |= {name: value for name in _PASSED if (value := getattr(params, name)) != _PLAIN[name]}
    if params.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    if params.grammar is not None:
        body["structured_outputs"] = params.grammar.as_vllm()
    if params.logprobs is not None:
        # Their tokens as ids: texts may be the same for two of them.
        body["return_tokens_as_token_ids"] = True
    return body


def read_event(data: bytes) -> StreamEvent:
    """
    Raises:
        ValueError: It is not an event of such a stream.
    """
    if data == b"[DONE]":
        return StreamEvent()
    document = json.loads(data)
    try:
        if "error" in document:
            return StreamEvent(error=str(document["error"]["message"])[:DETAIL_CHARS])
        (choice,) = document["choices"]
        tokens, reason = choice["token_ids"], choice["finish_reason"]
        if not all(type(token) is int for token in tokens):
            raise TypeError("token_ids are not numbers")
        logprobs = _read_logprobs(choice.get("logprobs"))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    # The stop token is not part of an answer.
    answered = tokens[:-1] if reason == STOP else tokens
    return StreamEvent(answered, reason, logprobs=logprobs[: len(answered)])


def _read_logprobs(document: Any) -> Sequence[TokenLogprobs]:
    if document is None:
        return ()
    return [
        TokenLogprobs(
            float(logprob),
            tuple(
                (int(name.removeprefix(ID_PREFIX)), float(each))
                for name, each in sorted((top or {}).items(), key=lambda pair: -pair[1])
            ),
        )
        for logprob, top in zip(document["token_logprobs"], document["top_logprobs"], strict=True)
    ]


def read_gauges(text: str) -> Gauges:
    """
    Raises:
        ValueError: A gauge is missing.
    """
    found: dict[str, float] = {}
    for name, value in SAMPLE.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    if missing := {RUNNING, WAITING} - found.keys():
        raise ValueError(f"{METRICS} has no {' and no '.join(sorted(missing))}")
    cache, steps = found.get(CACHE, 0.0), found.get(STEPS, 0.0)
    return Gauges(int(found[RUNNING]), int(found[WAITING]), cache, int(steps))


def read_context_tokens(models: bytes) -> int:
    """
    Return the most tokens of prompt and answer, from the list of models.

    Raises:
        ValueError: It has no such number.
    """
    try:
        return int(json.loads(models)["data"][0]["max_model_len"])
    except (LookupError, TypeError) as error:
        raise ValueError(f"{MODELS} has no max_model_len") from error


def refusal(status: int, body: bytes) -> str:
    """
    Return vLLM's message for a refused request, on one line.
    """
    try:
        words = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        words = body.decode(errors="replace")
    return f"vLLM answered {status}: {' '.join(words.split())}"[:DETAIL_CHARS]
