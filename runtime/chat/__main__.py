"""
`python -m runtime.chat DIR`: says whether the chat templates of a model directory compile.

It prints null, or {"complaint"} as JSON.
"""

import json
import sys
from pathlib import Path

from runtime.chat.template import load_chat_template
from runtime.contract.errors import ModelError


def main(directory: Path) -> None:
    answer = None
    try:
        if template := load_chat_template(directory):
            template.close()
    except ModelError as error:
        answer = {"complaint": f"{error.what}: {error.why}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
