"""
Records what transformers renders, for the tests beside it.

    python -m venv /tmp/hf && /tmp/hf/bin/pip install transformers==5.24.0 jinja2==3.1.6
    /tmp/hf/bin/python -m tests.unit.runtime.chat.record [DIRECTORY]

DIRECTORY has templates, NAME.jinja, that may not be copied here: of their renderings the SHA-256
is recorded, with that of the template.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from tests.unit.runtime.chat.conversations import CONVERSATIONS, for_transformers
from tests.unit.runtime.chat.layouts import CONVERSATIONS as OF_LAYOUTS
from tests.unit.runtime.chat.layouts import LAYOUTS
from tests.unit.runtime.chat.models import FORMS, RECORDINGS, TEMPLATES, make_model


def main(argv):
    for path in sorted(TEMPLATES.glob("*.jinja")):
        write(path.stem, of_template(path))
    for path in sorted(Path(argv[0]).glob("*.jinja")) if argv else []:
        document = of_template(path)
        for rendering in document["renderings"].values():
            if "text" in rendering:
                rendering["sha256"] = sha256(rendering.pop("text"))
        write(path.stem, document | {"template_sha256": sha256(path.read_text(encoding="utf-8"))})
    layouts = {}
    for name, files in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder) / "m", **files)
            layouts[name] = renderings(model, OF_LAYOUTS, form="string")
    write("layouts", layouts)


def of_template(path):
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "m", template=path.read_text(encoding="utf-8"))
        return {"renderings": renderings(model, CONVERSATIONS, form=FORMS.get(path.stem, "string"))}


def renderings(model, conversations, *, form):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return {
        name: rendering(tokenizer, conversation, form)
        for name, conversation in conversations.items()
    }


def rendering(tokenizer, conversation, form):
    try:
        text = tokenizer.apply_chat_template(
            for_transformers(conversation.messages, form),
            tools=conversation.tools,
            add_generation_prompt=conversation.add_generation_prompt,
            tokenize=False,
            **conversation.kwargs,
        )
    except Exception as error:
        return {"refused": str(error)}
    return {"text": text}


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write(name, document):
    import jinja2
    import transformers

    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    text = json.dumps(versions | document, ensure_ascii=False, indent=1)
    (RECORDINGS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
