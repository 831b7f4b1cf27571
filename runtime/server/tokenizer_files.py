"""
Reads the tokenizer of a model directory, as transformers does.

Source: `TokenizersBackend.__init__` in tokenization_utils_tokenizers.py of transformers 5.23.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before the first use: one text is tokenized by one thread, so a thread for each core only waits.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import AddedToken, Tokenizer

from runtime.chat.files import (
    in_file,
    read_extra_special_tokens,
    read_json,
    read_special_tokens,
)
from runtime.contract.chat_files import TOKEN_FLAGS, TOKENIZER_CONFIG, added_tokens
from runtime.contract.errors import ModelError
from runtime.plain_files import read_plain_file

TOKENIZER = "tokenizer.json"
MAX_TOKENIZER_BYTES = 512 << 20  # the largest published ones have 35 MiB


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """
    Attributes:
        eos_token_ids: The id of `eos_token`, with which answers end; empty if none is named.
    """

    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]


def load_tokenizer(model_dir: Path) -> LoadedTokenizer:
    """
    Return the tokenizer of TOKENIZER, with the tokens that TOKENIZER_CONFIG adds.

    It neither cuts nor pads, whatever the file asks for: a prompt that is too long is an error of
    its request.

    Raises:
        ModelError: A file can't be read, or the two contradict each other.
    """
    path = model_dir / TOKENIZER
    try:
        tokenizer = Tokenizer.from_buffer(read_plain_file(path, MAX_TOKENIZER_BYTES))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _keep_spaces_in_offsets(tokenizer)
        tokenizer.encode_batch_fast([""])
        if not tokenizer.get_vocab_size():
            raise ValueError("its vocabulary is empty")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ModelError(
            f"{path}: can't be read", why=str(error), fix="give the directory of a whole model"
        ) from error
    config = read_json(model_dir / TOKENIZER_CONFIG) or {}
    special = read_special_tokens(model_dir, config)
    _add_tokens(tokenizer, model_dir, config, special)
    eos = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return LoadedTokenizer(tokenizer, frozenset() if eos is None else frozenset([eos]))


def _keep_spaces_in_offsets(tokenizer: Tokenizer) -> None:
    """
    Let the offsets of a token cover all of its text: some tokenizers leave out its first space.
    """
    processor = tokenizer.post_processor
    if processor is not None:
        state = processor.__getstate__()
        processor.__setstate__(state.replace(b'"trim_offsets":true', b'"trim_offsets":false'))
        tokenizer.post_processor = processor


def _add_tokens(
    tokenizer: Tokenizer, model_dir: Path, config: Mapping[str, Any], special: Mapping[str, str]
) -> None:
    try:
        listed = added_tokens(config)
    except ValueError as error:
        raise in_file(model_dir, error) from None
    there = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    for token in map(_token, listed.values()):
        if repr(token) not in there:
            _add(tokenizer, token)
    texts = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    extra = read_extra_special_tokens(model_dir, config)
    for text in dict.fromkeys([*special.values(), *extra]):
        if text and text not in texts:
            _add(tokenizer, AddedToken(text, special=True, normalized=False))
    for id, document in listed.items():
        text = document["content"]
        own = tokenizer.token_to_id(text)
        if text and own != id:
            raise ModelError(
                f"{model_dir / TOKENIZER_CONFIG}: added_tokens_decoder.{id}: not valid",
                why=f"{TOKENIZER} gives {text!r} the id {own}",
                fix="use both files as they were published with the model",
            )


def _token(document: Mapping[str, Any]) -> AddedToken:
    flags = {flag: document[flag] for flag in TOKEN_FLAGS if flag in document}
    return AddedToken(document["content"], **flags)


def _add(tokenizer: Tokenizer, token: AddedToken) -> None:
    # The library normalizes the text of a token that is not special.
    if token.special:
        tokenizer.add_special_tokens([token])
    else:
        tokenizer.add_tokens([token])
