"""
Model directories with a chat template, as small as transformers reads them.
"""

import json
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
RECORDINGS = Path(__file__).parent / "recordings"
BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
# The form of content that a template takes; the others take strings.
FORMS = {"glm-4.1v-thinking": "either", "glm-4.5": "either", "own-parts": "parts"}


def make_model(directory, *, template=None, config=None, files=None):
    """
    Write a model directory.

    Args:
        template: Text of chat_template.jinja.
        config: Further keys of tokenizer_config.json.
        files: Further files: bytes or JSON values by path.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {"<unk>": 0, BOS: 1, EOS: 2}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {},
        "bos_token": BOS,
        "eos_token": EOS,
        **(config or {}),
    }
    written = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {k: v for k, v in tokenizer_config.items() if v is not None},
        **(files or {}),
    }
    if template is not None:
        written["chat_template.jinja"] = template.encode()
    for name, content in written.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return directory
