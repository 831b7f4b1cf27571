"""
Records what transformers answers: `python -m tests.real_model.record DIRECTORY`.

Greedy, in float32, on the CPU.  DIRECTORY is that of `convert`.
"""

import json
import sys
from pathlib import Path

MAX_TOKENS = 24
RECORDED = Path(__file__).with_name("answers.json")

_QUESTIONS = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "What is 2 + 2?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Write a haiku about ships.",
    "What does HTTP stand for?",
    "List two uses of a hammer.",
    "Say hello in German: Grüß Gott!",
    "Who wrote Hamlet?",
    "日本の首都はどこですか?",
    "Explain rollback in one sentence.",
]
_SYSTEM = {"role": "system", "content": "You answer in one short sentence."}


def conversations() -> list[list[dict[str, str]]]:
    """
    Return twenty: of one message, with a system message, and of several turns.
    """
    single = [[{"role": "user", "content": question}] for question in _QUESTIONS]
    briefed = [[_SYSTEM, *one] for one in single[:4]]
    turns = [
        [
            *first,
            {"role": "assistant", "content": "I am not sure."},
            {"role": "user", "content": "Please try again."},
        ]
        for first in single[4:8]
    ]
    return single + briefed + turns


def record(directory: Path) -> list[str]:
    """
    Return the answers of transformers to `conversations`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for messages in conversations():
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True))
    return answers


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(record(Path(sys.argv[1])), indent=2, ensure_ascii=False) + "\n")
