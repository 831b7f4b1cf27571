import json
import re

import pytest

from runtime.contract.errors import ConfigError
from runtime.server.warmup import PROMPT, check_prompt


def test_the_warm_up_uses_the_first_golden_prompt(tmp_path):
    """
    The release checks use the same prompts.
    """
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"prompt": "one", "max_tokens": 3, "expected": "x"}\n{"prompt": "two"}\n')
    assert check_prompt(golden).prompt == "one"


def test_the_warm_up_may_be_a_conversation(tmp_path):
    """
    With the tools of the golden prompt.
    """
    tool = {"type": "function", "function": {"name": "tap"}}
    line = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "max_tokens": 3}
    golden = tmp_path / "golden.jsonl"
    golden.write_text(json.dumps(line | {"expected": "x"}) + "\n")
    conversation = check_prompt(golden).prompt
    assert conversation.messages == ({"role": "user", "content": "hi"},)
    assert conversation.tools == (tool,)


def test_a_release_without_golden_prompts_has_a_default_warm_up(tmp_path):
    """
    No file, or an empty one.
    """
    assert check_prompt(tmp_path / "none").prompt == PROMPT
    (tmp_path / "empty").touch()
    assert check_prompt(tmp_path / "empty").prompt == PROMPT


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"messages": []}', "messages: List should have at least 1 item"),
        ('{"messages": [{"role": "king"}]}', r"messages\.0\.role: Input should be 'system'"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": 5}', "tools: Input should be"),
        ('{"max_tokens": 3}', "prompt: should be a text"),
        ('{"prompt": 5}', "prompt: should be a text"),
        ('"prompt"', "not a JSON object"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_an_invalid_golden_prompt_is_named(tmp_path, line, why):
    """
    The error has the file, the line and the field.
    """
    golden = tmp_path / "golden.jsonl"
    golden.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"golden\.jsonl: line 1") as caught:
        check_prompt(golden)
    assert re.search(why, caught.value.why)
    assert "\n" not in caught.value.why
