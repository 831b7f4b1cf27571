"""
The grammar of a bench line, and a tokenizer for it: the bench's models have none.
"""

import json
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from runtime.engines.paged.grammars import Grammars
from runtime.structured import Grammar, GrammarKind

_ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 4, "maxLength": 40},
        "kind": {"enum": ["berth", "crane", "slipway", "quay"]},
        "length_m": {"type": "number", "minimum": 0, "maximum": 5000},
        "open": {"type": "boolean"},
        "notes": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["name", "kind", "length_m", "open"],
    "additionalProperties": False,
}
# No answer of a bench line completes it: all have the same number of tokens.
_ENDLESS = {"type": "array", "items": _ITEM, "minItems": 4000}
ENDLESS = Grammar(
    GrammarKind.JSON,
    json.dumps(_ENDLESS),
    json.dumps({"grammars": [{"json_schema": _ENDLESS}]}),
)
MASK_THREADS = 8
_MARKS = ('{"', '":', '": ', '",', '", "', '"}', '"},', "},{", '[{"', "[]", '":"', '":{"', "\\n")


@cache
def bench_grammars(vocabulary: int) -> Grammars:
    """
    Return grammars over *vocabulary* tokens: bytes, marks of JSON, numbers and words.
    """
    from runtime.structured.compiler import GrammarCompiler

    with TemporaryDirectory(prefix="slipway-bench-") as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(tokenizer_text(vocabulary), encoding="utf-8")
        return Grammars(GrammarCompiler(path, vocabulary, threads=MASK_THREADS))


def tokenizer_text(vocabulary: int) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokens |= dict.fromkeys(mark.replace(" ", "Ġ") for mark in _MARKS)
    rng = Random(0)  # noqa: S311 - no secrets
    while len(tokens) < vocabulary:
        letters = "0123456789" if rng.random() < 0.02 else "etaoinshrdlucmfwypvbgkjqxz"
        word = "".join(rng.choices(letters, k=rng.randint(2, 8)))
        tokens[rng.choice(("", "Ġ")) + word] = None
    ids = {token: id for id, token in enumerate(list(tokens)[:vocabulary])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())
