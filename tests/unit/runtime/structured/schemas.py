"""
Schemas of the families that JSON-Schema-Bench has, and the check of an answer against one.
"""

import json

import jsonschema

PATTERNS = ("^[0-9]{5}$", "^[a-f]{2}-[0-9]{1,3}$", "^(yes|no)$", "^[A-Z][a-z]{1,6}$")
FORMATS = ("date", "time", "ipv4", "uuid", "email")


def make_schema(rng):
    """
    Return a schema whose answers end: all its parts are bounded.
    """
    schema = _object(rng, 3)
    if rng.random() < 0.3:
        name = rng.choice(list(schema["properties"]))
        schema["$defs"] = {"part": schema["properties"][name]}
        schema["properties"][name] = {"$ref": "#/$defs/part"}
    return schema


def why_invalid(schema, text):
    """
    Return why *text* is no valid document, or None.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        return f"{error}: {text!r}"
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return next((f"{error.message}: {text!r}" for error in errors), None)


def _object(rng, depth):
    names = rng.sample(["id", "name", "size", "items", "kind", "note", "where"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth - 1) for name in names},
        "required": rng.sample(names, rng.randint(1, len(names))),
        "additionalProperties": False,
    }


def _value(rng, depth):
    kinds = [_text, _pattern, _format, _integer, _number, _enum, _constant, _boolean]
    if depth > 0:
        kinds += [_array, _tuple, _any_of, lambda rng, depth: _object(rng, depth)] * 2
    return rng.choice(kinds)(rng, depth)


def _text(rng, depth):
    return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 8)}


def _pattern(rng, depth):
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def _format(rng, depth):
    return {"type": "string", "format": rng.choice(FORMATS), "maxLength": 40}


def _integer(rng, depth):
    low = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}


def _number(rng, depth):
    low = rng.randint(-20, 20)
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + 7.5}


def _enum(rng, depth):
    return {"enum": rng.sample(["red", "blue", 3, 4.5, None, True, 'a "b" \\'], 3)}


def _constant(rng, depth):
    return {"const": rng.choice(["v1", 7, False, None])}


def _boolean(rng, depth):
    return {"type": rng.choice(["boolean", ["boolean", "null"]])}


def _array(rng, depth):
    low = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _value(rng, depth - 1),
        "minItems": low,
        "maxItems": low + rng.randint(0, 2),
    }


def _tuple(rng, depth):
    parts = [_value(rng, depth - 1) for _ in range(2)]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": 2}


def _any_of(rng, depth):
    return {"anyOf": [_value(rng, depth - 1), _object(rng, depth - 1)]}
