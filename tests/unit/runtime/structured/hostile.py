"""
Grammars that are meant to explode, and that no check may pass.
"""

import json

from runtime.structured import GrammarKind


def _nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _branches(count):
    def properties(at):
        return {f"a{row}_{at}": {"type": "string"} for row in range(count)}

    branches = [{"type": "object", "properties": properties(at)} for at in range(4)]
    return {"allOf": [{"anyOf": branches}] * count}


_LOOP = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
SCHEMAS = {
    "nested": _nested(200),
    "endless reference": {"$ref": "#"},
    "references in a circle": {"$ref": "#/$defs/a", "$defs": _LOOP},
    "reference elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "reference to a file": {"$ref": "file:///etc/passwd"},
    "schema elsewhere": {"$schema": "http://127.0.0.1:1/schema", "type": "object"},
    "branches": _branches(12),
    "optional properties": {
        "type": "object",
        "properties": {f"p{number}": {"type": "string"} for number in range(2200)},
    },
    "pattern": {"type": "string", "pattern": "^(a|a)*{1000}$", "format": "email"},
    "multiple": {"type": "integer", "multipleOf": 982451653},
    "length": {"type": "string", "maxLength": 10**18},
    "nothing": False,
    "no schema": 5,
    "not supported": {"type": "array", "uniqueItems": True},
    "llguidance's options": {"type": "object", "x-guidance": {"lenient": True}},
}
HOSTILE = {name: (GrammarKind.JSON, json.dumps(schema)) for name, schema in SCHEMAS.items()} | {
    "20,000 levels": (GrammarKind.JSON, "[" * 20_000),
    "not JSON": (GrammarKind.JSON, '{"type"'),
    "parentheses": (GrammarKind.REGEX, "(" * 20_000 + ")" * 20_000),
    "look-ahead": (GrammarKind.REGEX, "(?=a)b"),
    "backreference": (GrammarKind.REGEX, r"(a)\1"),
    "deep Lark": (GrammarKind.GRAMMAR, f'start: {"(" * 10_000}"a"{")" * 10_000}'),
    "endless Lark": (GrammarKind.GRAMMAR, "start: start"),
    "doubling Lark": (
        GrammarKind.GRAMMAR,
        "start: r0\n"
        + "\n".join(f"r{n}: r{n + 1} r{n + 1} r{n + 1}" for n in range(30))
        + '\nr30: "a"',
    ),
    "import": (GrammarKind.GRAMMAR, "start: x\n%import /etc/passwd"),
    "deep GBNF": (GrammarKind.GRAMMAR, f"root ::= {'(' * 10_000}x{')' * 10_000}"),
}
