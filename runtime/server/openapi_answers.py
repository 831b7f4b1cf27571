"""
The schemas of the answers that the description of the API has.

Objects are open: a later release may add keys.  The test of the description closes them.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
DONE = "[DONE]"


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def const(value: str) -> Schema:
    return {"type": "string", "const": value}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": schema, **bounds}


def an_object(required: Schema, optional: Schema | None = None) -> Schema:
    properties = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": properties}


def event_of(name: str) -> Schema:
    """
    Return the schema of one server-sent event whose documents are *name*: one of them, the error
    that ends a stream early, or the mark of a whole one.
    """

    def event(kind: str, data: Schema) -> Schema:
        return an_object({"data": data}, {"event": const(kind)})

    def document(schema: str) -> Schema:
        return {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": ref(schema),
        }

    # `message` is what an event without a name has.  Source: WHATWG HTML, server-sent events.
    failed = event("error", document("Error"))
    failed["required"] = ["data", "event"]
    return {"anyOf": [event("message", const(DONE)), event("message", document(name)), failed]}


FINISH_REASON = one_of("stop", "length", "tool_calls")
TEXT_FINISH_REASON = one_of("stop", "length")
USAGE = an_object(
    {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
    {"prompt_tokens_details": an_object({"cached_tokens": COUNT})},
)
SCORED = {
    "token": STRING,
    "logprob": NUMBER,
    "bytes": list_of({"type": "integer", "minimum": 0, "maximum": 255}),
}
CHAT_LOGPROBS = an_object(
    {
        "content": list_of(an_object(SCORED | {"top_logprobs": list_of(an_object(SCORED))})),
        "refusal": {"type": "null"},
    }
)
COMPLETION_LOGPROBS = an_object(
    {
        "tokens": list_of(STRING),
        # null for the first token of an echoed prompt
        "token_logprobs": list_of(or_null(NUMBER)),
        "top_logprobs": list_of(or_null({"type": "object", "additionalProperties": NUMBER})),
        "text_offset": list_of(COUNT),
    }
)
CALL = an_object(
    {
        "id": STRING,
        "type": const("function"),
        "function": an_object({"name": STRING, "arguments": STRING}),
    }
)
CALL_DELTA = an_object(
    {"index": COUNT, "function": an_object({"arguments": STRING}, {"name": STRING})},
    {"id": STRING, "type": const("function")},
)
MESSAGE = an_object(
    {"role": const("assistant"), "content": or_null(STRING), "refusal": {"type": "null"}},
    {"reasoning_content": or_null(STRING), "tool_calls": list_of(CALL, minItems=1)},
)
DELTA = an_object(
    {},
    {
        "role": const("assistant"),
        "content": or_null(STRING),
        "reasoning_content": STRING,
        "tool_calls": list_of(CALL_DELTA, minItems=1),
    },
)
NAMES = {"id": STRING, "created": COUNT, "model": STRING, "version": STRING}
# The last event before the mark, where the request includes the usage, has no choice.
CHUNK_USAGE = {"usage": or_null(ref("Usage"))}


def _chat_choice(key: str, schema: Schema, finish_reason: Schema) -> Schema:
    return an_object(
        {
            "index": COUNT,
            key: schema,
            "logprobs": or_null(CHAT_LOGPROBS),
            "finish_reason": finish_reason,
        }
    )


def _text_choice(finish_reason: Schema) -> Schema:
    return an_object(
        {
            "index": COUNT,
            "text": STRING,
            "logprobs": or_null(COMPLETION_LOGPROBS),
            "finish_reason": finish_reason,
        }
    )


PIECE = {"id": STRING, "version": STRING, "text": STRING}
COUNTS = {"tokens": COUNT, "prompt_tokens": COUNT, "finish_reason": TEXT_FINISH_REASON}
PHASE = one_of("loading", "warming", "ready", "draining", "stopped", "failed")

ANSWERS: dict[str, Schema] = {
    "Usage": USAGE,
    "Generated": an_object(PIECE | COUNTS | {"result": STRING}),
    "GeneratedPiece": an_object(PIECE, COUNTS),
    "ChatCompletion": an_object(
        NAMES
        | {
            "object": const("chat.completion"),
            "choices": list_of(_chat_choice("message", MESSAGE, FINISH_REASON), minItems=1),
            "usage": ref("Usage"),
        }
    ),
    "ChatCompletionChunk": an_object(
        NAMES
        | {
            "object": const("chat.completion.chunk"),
            "choices": list_of(_chat_choice("delta", DELTA, or_null(FINISH_REASON)), maxItems=1),
        },
        CHUNK_USAGE,
    ),
    "Completion": an_object(
        NAMES
        | {
            "object": const("text_completion"),
            "choices": list_of(_text_choice(TEXT_FINISH_REASON), minItems=1),
            "usage": ref("Usage"),
        }
    ),
    "CompletionChunk": an_object(
        NAMES
        | {
            "object": const("text_completion"),
            "choices": list_of(_text_choice(or_null(TEXT_FINISH_REASON)), maxItems=1),
        },
        CHUNK_USAGE,
    ),
    "Embeddings": an_object(
        {
            "object": const("list"),
            "model": STRING,
            "data": list_of(
                an_object(
                    {
                        "object": const("embedding"),
                        "index": COUNT,
                        "embedding": {
                            "anyOf": [
                                list_of(NUMBER, minItems=1),
                                {"type": "string", "contentEncoding": "base64"},
                            ]
                        },
                    }
                ),
                minItems=1,
            ),
            "usage": an_object({"prompt_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "Tokens": an_object(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": list_of(COUNT),
            "token_strs": {"type": "null"},
        }
    ),
    "Detokenized": an_object({"prompt": STRING}),
    "Model": an_object(
        {
            "id": STRING,
            "object": const("model"),
            "created": COUNT,
            "owned_by": const("slipway"),
            "version": STRING,
            "max_model_len": {
                "anyOf": [COUNT, {"type": "null", "description": "The model is not loaded yet"}]
            },
        }
    ),
    "Models": an_object({"object": const("list"), "data": list_of(ref("Model"), minItems=1)}),
    "Live": an_object({"alive": {"const": True}}),
    "Ready": an_object({"ready": BOOLEAN, "phase": PHASE, "version": STRING}, {"reason": STRING}),
    "Health": an_object(
        {"phase": PHASE, "version": STRING},
        {"tokens": COUNT, "finish_reason": TEXT_FINISH_REASON, "dimensions": COUNT},
    ),
}
