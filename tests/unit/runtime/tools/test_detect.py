"""
Which parser a chat template asks for.
"""

import pytest

from runtime.chat import load_chat_template
from runtime.server.answers import syntax_of
from runtime.tools import ToolSyntax, find_syntax
from tests.unit.runtime.chat.models import TEMPLATES, make_model

PARSERS = {
    "glm-4-0414": ToolSyntax("glm", has_observations=True),
    "glm-4.1v-thinking": None,  # reads no tools
    "glm-4.5": ToolSyntax("glm"),
    "own-parts": None,  # of no known family
    "qwen2.5-instruct": ToolSyntax("hermes"),
    "qwen3": ToolSyntax("hermes"),
    "smollm2-instruct": None,
}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_published_templates_are_recognised(path, tmp_path):
    """
    As the runtime does it, with the template compiled.
    """
    template = load_chat_template(make_model(tmp_path / "m", template=path.read_text()))
    try:
        assert syntax_of("auto", template) == PARSERS[path.stem]
        assert syntax_of("none", template) is None
        assert syntax_of("json", template).parser == "json"
    finally:
        template.close()


def test_the_marks_of_a_family_decide():
    """
    Of a template that reads tools; one with Qwen3-Coder's form has marks of Hermes too.
    """
    hermes = '<tool_call>{\\"name\\": 1, \\"arguments\\": 2}'
    llama = '<|start_header_id|>{"name": 1, "parameters": 2}'
    assert find_syntax("auto", hermes, reads_tools=True) == ToolSyntax("hermes")
    assert find_syntax("auto", llama, reads_tools=True) == ToolSyntax("llama3_json")
    assert find_syntax("auto", hermes, reads_tools=False) is None
    assert find_syntax("auto", hermes + "<function=", reads_tools=True) is None
    assert find_syntax("auto", "{{ tools }}", reads_tools=True) is None


def test_a_model_without_a_template_has_no_tools():
    """
    Whatever the configuration says.
    """
    assert syntax_of("hermes", None) is None
