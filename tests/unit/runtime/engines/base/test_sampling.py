import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.base.protocol import Submit, decode_to_engine, encode
from runtime.engines.base.sampling import SamplingParams
from runtime.structured.grammar import Grammar, GrammarKind

CHANGED = {
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 5,
    "top_k": 40,
    "min_p": 0.05,
    "presence_penalty": 1.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": ((3, 1.5), (9, -100.0)),
    "stop_token_ids": (7, 8),
    "min_tokens": 4,
    "ignore_eos": True,
    "logprobs": 0,
    "prompt_logprobs": 2,
    "grammar": Grammar(GrammarKind.REGEX, "[a-z]+", "start: /[a-z]+/"),
}


def test_only_fields_that_differ_are_sent():
    """
    A plain request costs the wire nothing more.
    """
    line = encode(Submit(1, [2], SamplingParams(4), 9.0))
    assert json.loads(line)["params"] == {"max_tokens": 4}


@pytest.mark.parametrize("field", CHANGED)
def test_each_field_round_trips(field):
    """
    Equal at the other end, tuples included.
    """
    message = Submit(1, [2], SamplingParams(4, **{field: CHANGED[field]}), 9.0)
    sent = json.loads(encode(message))["params"]
    assert sent.keys() == {"max_tokens", field}
    assert decode_to_engine(encode(message)) == message


def test_every_field_is_tested():
    """
    A new field needs a value here.
    """
    assert vars(SamplingParams(4)).keys() == {"max_tokens", *CHANGED}


@given(st.fixed_dictionaries({}, optional={key: st.just(value) for key, value in CHANGED.items()}))
def test_any_set_of_fields_round_trips(fields):
    """
    A document is what differs, and no more.
    """
    params = SamplingParams(4, **fields)
    sent = json.loads(json.dumps(params.as_document(), default=vars))
    assert SamplingParams.from_document(sent) == params
    assert params.as_document() == {"max_tokens": 4} | fields


@pytest.mark.parametrize(
    ("fields", "has_penalty"),
    [
        ({}, False),
        ({"top_k": 5, "logit_bias": ((1, 2.0),)}, False),
        ({"presence_penalty": -1.0}, True),
        ({"frequency_penalty": 0.5}, True),
        ({"repetition_penalty": 1.2}, True),
    ],
)
def test_a_penalty_needs_the_tokens_before(fields, has_penalty):
    """
    Zero and, for repetition, one are none.
    """
    assert SamplingParams(4, **fields).has_penalty is has_penalty
