"""
The form of a message's content that a template reads: a string, or a list of parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from jinja2 import nodes

from runtime.chat.errors import ChatTemplateError


class ContentForm(Enum):
    """
    Attributes:
        EITHER: The template looks whether the content is a string.
    """

    STRING = "string"
    PARTS = "parts"
    EITHER = "either"


def detect_form(template: nodes.Template) -> ContentForm:
    """
    Return the form that *template* reads: parts if it loops over the content of a message.
    """
    is_content = _ContentExpressions(template).is_content
    loops = any(is_content(_source(loop.iter)) for loop in template.find_all(nodes.For))
    indexes = any(
        isinstance(item.arg, nodes.Const)
        and isinstance(item.arg.value, int)
        and is_content(item.node)
        for item in template.find_all(nodes.Getitem)
    )
    if not (loops or indexes):
        return ContentForm.STRING
    looks = any(test.name == "string" and is_content(test.node) for test in _tests(template))
    return ContentForm.EITHER if looks else ContentForm.PARTS


def convert(content: object, form: ContentForm, *, role: object, where: str) -> object:
    """
    Return *content* in the form that the template reads.

    Text parts become one string, with line ends between them for a template that knows no parts.
    A template that reads either gets a user's content as it is.  For the other roles such
    templates often print the content, so these get strings.

    Raises:
        ChatTemplateError: A part is not text; names it by *where*.
    """
    if isinstance(content, str):
        is_text_wanted = form is not ContentForm.PARTS
        return content if is_text_wanted else [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return content
    texts = [_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if form is ContentForm.STRING:
        return "\n".join(texts)
    if form is ContentForm.EITHER and role != "user":
        return "".join(texts)
    return content


def _text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text":
        raise ChatTemplateError(f"{where}: a part of type {kind!r}: only 'text' is supported")
    if not isinstance(text, str):
        raise ChatTemplateError(f"{where}.text: should be a string")
    return text


class _ContentExpressions:
    """
    Recognises expressions whose value is the content of a message.

    These are `X.content`, `X["content"]` and `X.get("content")`, variables they are assigned to
    and parameters of macros they are passed to.
    """

    def __init__(self, template: nodes.Template) -> None:
        self._names: set[str] = set()
        macros = {macro.name: [arg.name for arg in macro.args] for macro in _macros(template)}
        pairs = [*_assignments(template), *_arguments(template, macros)]
        size = -1
        while len(self._names) > size:  # a name may be assigned from a name
            size = len(self._names)
            self._names |= {name for name, value in pairs if self.is_content(value)}

    def is_content(self, node: nodes.Node | None) -> bool:
        match node:
            case nodes.Name():
                return node.name in self._names
            case nodes.Getattr():
                return node.attr == "content"
            case nodes.Getitem(arg=nodes.Const(value="content")):
                return True
            case nodes.Call(
                node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]
            ):
                return True
            case nodes.CondExpr():
                return self.is_content(node.expr1) or self.is_content(node.expr2)
            case nodes.Or() | nodes.And():
                return self.is_content(node.left) or self.is_content(node.right)
        return False


def _source(node: nodes.Node | None) -> nodes.Node | None:
    """
    Return the expression that filters such as `selectattr` are applied to.
    """
    while isinstance(node, nodes.Filter):
        node = node.node
    return node


def _macros(template: nodes.Template) -> Iterator[nodes.Macro]:
    return template.find_all(nodes.Macro)


def _tests(template: nodes.Template) -> Iterator[nodes.Test]:
    return template.find_all(nodes.Test)


def _assignments(template: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    for assign in template.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name):
            yield assign.target.name, assign.node


def _arguments(
    template: nodes.Template, macros: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, nodes.Node]]:
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in macros:
            yield from zip(macros[call.node.name], call.args, strict=False)
            yield from ((keyword.key, keyword.value) for keyword in call.kwargs)
