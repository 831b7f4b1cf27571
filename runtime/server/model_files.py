"""
What the API process reads of a model directory.

The start and `python -m runtime check` both read it here, so that they refuse the same files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.chat import ChatTemplate, load_chat_template
from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.server.generation_defaults import read_generation_defaults
from runtime.server.text import TokenizerCodec
from runtime.server.tokenizer_files import TOKENIZER

MAX_NAMED_CHARS = 80


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """
    Attributes:
        template: None for a model without a chat template; it has a process of its own.
        generation_defaults: Of the sampling fields of OpenAI's routes, by field.
    """

    codec: TokenizerCodec
    template: ChatTemplate | None
    generation_defaults: Mapping[str, float]

    def close(self) -> None:
        if self.template is not None:
            self.template.close()


def open_model_files(model_dir: Path, options: EngineOptions) -> ModelFiles:
    """
    Return the tokenizer, the chat template and the defaults of the model in *model_dir*.

    Raises:
        ModelError: A file is missing or not valid; names it.
    """
    codec = TokenizerCodec(model_dir)
    is_models = options.generation_defaults == "model"
    defaults = read_generation_defaults(model_dir) if is_models else {}
    return ModelFiles(codec, load_chat_template(model_dir), defaults)


def check_tokens(model_dir: Path, codec: TokenizerCodec, vocabulary: int) -> str | None:
    """
    Return a warning that names the tokens for which the model has no embedding; None if it has all.

    Args:
        vocabulary: Rows of the model's embedding.

    Raises:
        ModelError: The tokenizer puts such a token into every prompt.
    """
    if missing := [id for id in codec.encode("") if id >= vocabulary]:
        raise ModelError(
            f"{model_dir / TOKENIZER}: it puts token {missing[0]} into every prompt",
            why=f"the embedding has {vocabulary} rows",
            fix="use the file that was published with the model",
        )
    tokens = codec.tokens_from(vocabulary)
    if not tokens:
        return None
    first = ", ".join(f"{text[:MAX_NAMED_CHARS]!r} ({id})" for text, id in tokens[:3])
    more = f" and {len(tokens) - 3} more" if len(tokens) > 3 else ""
    return (
        f"the embedding has {vocabulary} rows, and none for {first}{more} of {TOKENIZER}: "
        "requests with such tokens are refused"
    )
