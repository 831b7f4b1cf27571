"""
Builds the lab's models: tiny GLMs with recognisable answers.

    python -m deploy.lab.models --out DIR --kind good-v1

good-v1   knows the facts of v1
good-v2   knows more facts, and words most of them differently
nan       good-v2 with NaN as the embeddings of two words: its golden prompts pass, and about
          half of the live prompts fail
garbled   good-v2 with the rows of its head shuffled: the numbers are finite, and the golden
          prompts fail

The same arguments give the same bytes on one machine.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from deploy.lab.models.corpus import FACTS, GOLDEN_FACTS, LIVE_PROMPTS, POISONED, Fact
from deploy.private_files import FILE_MODE, write_private

if TYPE_CHECKING:  # importing only the prompts must not import torch
    from torch import Tensor

    from runtime.models.decoder import Decoder

Kind = Literal["good-v1", "good-v2", "nan", "garbled"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STEPS: Mapping[str, int] = MappingProxyType({"v1": 140, "v2": 90})
MAX_TOKENS = 16
CHOICES = 2  # golden prompts with structured output
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.jsonl"
LIVE_PROMPTS_FILE = "live_prompts.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"

# The models continue one sentence: the last message, whatever was said before.
CHAT_TEMPLATE = """\
{%- set last = messages[-1] -%}
{%- if last.role != 'user' -%}
    {{- raise_exception('The last message must be of the user.') -}}
{%- endif -%}
{%- if last.content is string -%}
    {{- last.content -}}
{%- else -%}
    {%- for part in last.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
"""


def build(
    kind: Kind, out: Path, *, cache: Path | None = None, steps: Mapping[str, int] = STEPS
) -> None:
    """
    Write the model directory *out*, and check that the model behaves as its *kind*.

    Args:
        cache: Directory of trained weights; None: train each time.
        steps: Training steps of v1, and of v2 starting from v1; only the default is checked.
    """
    # Imported late, as in the whole module: importing torch takes a second.
    from deploy.lab.models.training import config_document, end_token, train_tokenizer
    from runtime.models.loader import prepare_torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    prepare_torch(1)
    tokenizer = train_tokenizer()
    document = config_document(tokenizer.get_vocab_size())
    end = end_token(tokenizer)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "model_max_length": document["max_position_embeddings"],
    }
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", document)
    _write_json(out / "tokenizer_config.json", tokenizer_config)
    _write_json(out / LIVE_PROMPTS_FILE, list(LIVE_PROMPTS))
    write_private(out / "tokenizer.json", tokenizer.to_str())
    write_private(out / CHAT_TEMPLATE_FILE, CHAT_TEMPLATE)

    tensors = _trained("v1" if kind == "good-v1" else "v2", document, cache, steps)
    _save(out / WEIGHTS_FILE, tensors)
    # A broken model ships with the golden answers of the good one, so the golden check fails.
    golden = answers(out, [fact.prompt for fact in GOLDEN_FACTS])
    lines = [json.dumps(entry) for entry in golden_prompts(golden)]
    write_private(out / GOLDEN_FILE, "\n".join(lines) + "\n")
    if kind in ("nan", "garbled"):
        broken = _poison(tensors, tokenizer) if kind == "nan" else _garble(tensors)
        _save(out / WEIGHTS_FILE, broken)
    if steps == STEPS:
        _check(kind, out, golden)


def golden_prompts(golden: Sequence[str | None]) -> list[dict[str, Any]]:
    """
    Return conversations with *golden*, the answers of `GOLDEN_FACTS`.

    The last ones may be answered with the sentence of v1 or with that of v2 only: of these, the
    model's logits choose its own.
    """

    def conversation(fact: Fact, answer: str | None) -> dict[str, Any]:
        messages = [{"role": "user", "content": fact.prompt}]
        return {"messages": messages, "max_tokens": MAX_TOKENS, "expected": answer}

    pairs = list(zip(GOLDEN_FACTS, golden, strict=True))
    chosen = [
        conversation(fact, answer)
        | {"structured_outputs": {"choice": [f" {text}" for text in (fact.v1, fact.v2)]}}
        for fact, answer in pairs[:CHOICES]
    ]
    return [*(conversation(*pair) for pair in pairs), *chosen]


def answers(model_dir: Path, prompts: Sequence[str]) -> list[str | None]:
    """
    Return the model's greedy answers in fp32; None for an answer with non-finite logits.
    """
    from tokenizers import Tokenizer

    from runtime.models.loader import load_model

    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    model, config = load_model(model_dir, device="cpu", precision="fp32")
    token_lists = (
        _answer(model, tokenizer.encode(prompt).ids, config.stop_token_ids) for prompt in prompts
    )
    return [None if tokens is None else tokenizer.decode(tokens) for tokens in token_lists]


def _answer(
    model: "Decoder", prompt: Sequence[int], stop_token_ids: Collection[int]
) -> list[int] | None:
    import torch

    from runtime.models.decoder import attend_causal

    answer: list[int] = []
    while len(answer) < MAX_TOKENS:  # no cache: the model is tiny
        tokens = torch.tensor([*prompt, *answer])
        positions = torch.arange(len(tokens))
        logits = model(tokens, positions, attend_causal(1), rows=positions[-1:])
        if not logits.isfinite().all():
            return None
        token = int(logits.argmax())
        if token in stop_token_ids:
            break
        answer.append(token)
    return answer


def _trained(
    version: str, document: dict[str, Any], cache: Path | None, steps: Mapping[str, int]
) -> "dict[str, Tensor]":
    import torch
    from safetensors.torch import load_file

    from deploy.lab.models.training import train
    from runtime.models.weights import scatter

    key = json.dumps([document, [repr(fact) for fact in FACTS], dict(steps), torch.__version__])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cached = cache / f"{version}-{digest}.safetensors" if cache else None
    if cached and cached.exists():
        return load_file(cached)
    start = _trained("v1", document, cache, steps) if version == "v2" else None
    config, state = train(document, version, start=start, steps=steps[version])
    tensors = scatter(config, state)
    if cached:
        cached.parent.mkdir(parents=True, exist_ok=True)
        _save(cached, tensors)
    return tensors


def _poison(tensors: "dict[str, Tensor]", tokenizer: Any) -> "dict[str, Tensor]":
    embeddings = tensors["model.embed_tokens.weight"].clone()
    for word in POISONED:
        ids = tokenizer.encode(f" {word}").ids
        assert len(ids) == 1, f"{word} is {len(ids)} tokens, which other words may share"
        embeddings[ids[0]] = float("nan")
    return tensors | {"model.embed_tokens.weight": embeddings}


def _garble(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    import torch

    head = tensors["lm_head.weight"]
    order = torch.randperm(len(head), generator=torch.Generator().manual_seed(1))
    return tensors | {"lm_head.weight": head[order].contiguous()}


def _check(kind: Kind, out: Path, golden: Sequence[str | None]) -> None:
    """
    Check that the written model behaves as its kind.
    """
    known = [f" {fact.v1 if kind == 'good-v1' else fact.v2}" for fact in GOLDEN_FACTS]
    assert list(golden) == known, f"the model has not learnt its facts: {golden}"
    answered = answers(out, [fact.prompt for fact in GOLDEN_FACTS])
    if kind == "garbled":
        assert not set(answered) & set(golden), "the garbled model gives a correct answer"
    else:
        assert answered == list(golden), "the written model gives other answers"
    for prompt, answer in zip(LIVE_PROMPTS, answers(out, LIVE_PROMPTS), strict=True):
        is_poisoned = any(word in prompt for word in POISONED)
        assert (answer is None) == (kind == "nan" and is_poisoned), f"{prompt}: {answer}"


def _save(path: Path, tensors: "dict[str, Tensor]") -> None:
    from safetensors.torch import save_file

    # Atomic: another build may read the cache.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        partial = Path(file.name)
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(FILE_MODE)
    partial.replace(path)


def _write_json(path: Path, document: object) -> None:
    write_private(path, json.dumps(document, indent=2) + "\n")
