"""
The names that both sides use, each with a small alphabet: version, release, model, row, signer.

A name is matched as a whole: `$` would allow a line end after it, and `\\d` digits of any script.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from deploy.host.codec import Pattern


class Name(NamedTuple):
    """
    A kind of name.

    Attributes:
        kind: What it names, for errors.
        regex: Matches the whole name.
        meaning: The same in words.
    """

    kind: str
    regex: str
    meaning: str

    def parse(self, text: str) -> str:
        """
        Return *text*, which is such a name.

        Raises:
            ValueError: It is not; says what one is.
        """
        if not re.fullmatch(self.regex, text):
            raise ValueError(f"should be {self.meaning}")
        return text


VERSION = Name(
    "version",
    r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}",
    "letters, digits, . _ + -, a letter or digit first, 64 characters at most",
)
RELEASE = Name(
    "release",
    r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}",
    "a version, a release id or a digest: letters, digits, . _ + -",
)
FLEET = Name(
    "fleet",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "letters, digits, . _ -, a letter or digit first, 64 characters at most",
)
MODEL_NAME = Name(
    "model name",
    r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}",
    "letters, digits, . _ + / -, a letter or digit first, 128 characters at most",
)
ROW = Name(
    "row",
    r"[a-z0-9][a-z0-9._+-]{0,63}",
    "the name of a row of the version matrix, such as torch-2.13-cu130",
)
KEY = Name(
    "API key",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "letters, digits, . _ -, a letter or digit first, 64 characters at most",
)
IDENTITY = Name(
    "signer",
    r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}",
    "one word of letters, digits, . _ + - @, such as release@example.com",
)

Version = Annotated[str, Pattern(VERSION.regex, VERSION.meaning)]
ModelName = Annotated[str, Pattern(MODEL_NAME.regex, MODEL_NAME.meaning)]
KeyName = Annotated[str, Pattern(KEY.regex, KEY.meaning)]
RowName = Annotated[str, Pattern(ROW.regex, ROW.meaning)]
Identity = Annotated[str, Pattern(IDENTITY.regex, IDENTITY.meaning)]
