"""
Model directories that keep template and special tokens in different files.

Each template prints a name of its own and the special tokens.
"""

from tests.unit.runtime.chat.conversations import TAP, Conversation, user

NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "image", "audio", "think_start")


def printing(name):
    tokens = " ".join(f"{each}={{{{ {each}_token }}}}" for each in NAMES)
    return f"{name} {tokens} tools={{{{ tools|tojson }}}} documents={{{{ documents|tojson }}}}"


NAMED = [
    {"name": "default", "template": printing("named default")},
    {"name": "tool_use", "template": printing("named tool_use")},
    {"name": "rag", "template": printing("named rag")},
]
ADDITIONAL = {
    "additional_chat_templates/tool_use.jinja": printing("additional tool_use").encode(),
    "additional_chat_templates/rag.jinja": printing("additional rag").encode(),
}
OBJECT = {"content": "<obj>", "lstrip": False, "normalized": False, "rstrip": False,
          "single_word": False, "__type": "AddedToken"}  # fmt: skip

# Arguments of `make_model`
LAYOUTS = {
    "file": {"template": printing("file")},
    "config": {"config": {"chat_template": printing("config")}},
    "file over config": {
        "template": printing("file"), "config": {"chat_template": printing("config")},
    },
    "file over named": {"template": printing("file"), "config": {"chat_template": NAMED}},
    "named": {"config": {"chat_template": NAMED}},
    "file and additional": {"template": printing("file"), "files": ADDITIONAL},
    "additional over named": {
        "template": printing("file"), "config": {"chat_template": NAMED}, "files": ADDITIONAL,
    },
    "line ends of Windows": {"template": "a{% if true %}\r\nb\r\n{% endif %}\r\nc\rd\r\n"},
    "tokens as objects": {
        "template": printing("file"), "config": {"bos_token": OBJECT, "pad_token": OBJECT},
    },
    "tokens of the model": {
        "template": printing("file"),
        "config": {
            "image_token": "<image>",
            "extra_special_tokens": {"audio_token": "<audio>"},
        },
    },
    "token that is null": {"template": printing("file"), "config": {"bos_token": None}},
    "old map of tokens": {
        "template": printing("file"),
        "config": {"added_tokens_decoder": None},
        "files": {
            "special_tokens_map.json": {
                "bos_token": {"content": "<old>", "lstrip": False, "normalized": False,
                              "rstrip": False, "single_word": False},
                "cls_token": "<cls>",
            }
        },
    },
    "map of tokens without effect": {
        "template": printing("file"),
        "files": {"special_tokens_map.json": {"bos_token": "<old>"}},
    },
}  # fmt: skip

CONVERSATIONS = {
    "plain": Conversation([user("Hello")]),
    "tools": Conversation([user("Hello")], tools=[TAP]),
    "no tools in the list": Conversation([user("Hello")], tools=[]),
    "documents": Conversation([user("Hello")], kwargs={"documents": [{"title": "t", "text": "x"}]}),
    "own token": Conversation([user("Hello")], kwargs={"bos_token": "<own>"}),
}
