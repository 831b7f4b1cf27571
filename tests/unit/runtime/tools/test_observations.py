"""
Conversations with calls, for the template of GLM-4.
"""

from runtime.chat import load_chat_template
from runtime.tools import with_observations
from tests.unit.runtime.chat.conversations import CONVERSATIONS
from tests.unit.runtime.chat.models import TEMPLATES, make_model


def test_calls_and_results_reach_the_model(tmp_path):
    """
    As GLM-4's own tool example writes them; without the change they are left out.
    """
    source = (TEMPLATES / "glm-4-0414.jinja").read_text(encoding="utf-8")
    template = load_chat_template(make_model(tmp_path / "m", template=source))
    messages = CONVERSATIONS["tools called in parallel"].messages
    try:
        plain = template.render(messages)
        text = template.render(with_observations(messages))
    finally:
        template.close()
    assert text.endswith(
        '<|assistant|>get_weather \n{"city": "Zürich"}'
        '<|assistant|>get_weather \n{"city": "Bern"}'
        "<|observation|>\n21<|observation|>\n19<|assistant|>"
    )
    assert "21" not in plain


def test_other_messages_stay_as_they_are():
    """
    And words beside a call are a message before it.
    """
    messages = CONVERSATIONS["tool called with words"].messages
    converted = with_observations(messages)
    assert converted[:2] == tuple(messages[:2])
    assert converted[2] == {"role": "assistant", "content": "Let me look."}
    assert converted[3]["metadata"] == "get_weather"
    assert converted[-1] == messages[-1]
