"""
The value behind a secret's name, and a type that never shows it.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import InventoryError
from deploy.inventory.schema import Secret

_HIDDEN = "[hidden]"


class SecretValue:
    """
    A secret in memory: prints, formats and logs as `[hidden]`; `reveal` gives the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return _HIDDEN

    def __format__(self, spec: str) -> str:
        return format(_HIDDEN, spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretValue) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written down")


def resolve_secret(
    secret: Secret, env: Mapping[str, str], *, name: str | None = None
) -> SecretValue:
    """
    Return what *secret* stands for; of a file, the text without its last line end.

    Args:
        name: The key under `secrets`, for the message.

    Raises:
        InventoryError: The variable or file is missing or empty, or others may read the file.
    """
    what = f"secrets.{name}" if name else "the secret"
    if secret.env is not None:
        text = env.get(secret.env, "")
        if not text:
            seen = "empty" if secret.env in env else "not set"
            raise InventoryError(
                f"{what}: has no value",
                why=f"the environment variable {secret.env} is {seen}",
                fix=f"export {secret.env} before running this, or point {what} at a file",
            )
        return _one_line(text, what, f"the environment variable {secret.env}")
    assert secret.file is not None
    return _one_line(_read_private(secret.file, what), what, str(secret.file))


def _read_private(path: Path, what: str) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InventoryError(
                    f"{what}: others may read {path}",
                    why=f"its mode is {stat.S_IMODE(mode):04o}, and 0600 is the widest allowed",
                    fix=f"chmod 600 {path}, and change the secret if others could have read it",
                )
            text = file.read().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise InventoryError(
            f"{what}: {path} can't be read",
            why=str(error.strerror),
            fix=f"put the secret into {path} with mode 0600",
        ) from error
    if not text:
        raise InventoryError(
            f"{what}: {path} holds no text",
            why="the file is empty or not UTF-8",
            fix=f"put the secret into {path}, alone on one line",
        )
    return text


def _one_line(text: str, what: str, where: str) -> SecretValue:
    # It ends up in an environment file, where a second line would be another variable.
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InventoryError(
            f"{what}: is more than one line of text",
            why=f"{where} holds a control character",
            fix=f"put the secret into {where}, alone on one line",
        )
    return SecretValue(text)
