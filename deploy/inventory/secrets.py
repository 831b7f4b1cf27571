"""
Reads secret values, and holds them in a type that never prints them.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import InventoryError
from deploy.inventory.schema import Secret

_HIDDEN = "[hidden]"
_PREFIX = "slipway"  # as SLIPWAY_ of the variables
_SECRET_MAX = 64 * 1024  # characters


class SecretValue:
    """
    A secret in memory: printed, formatted and logged as `[hidden]`; `reveal` returns the text.
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
        raise TypeError("a secret cannot be pickled or copied")


def resolve_secret(
    secret: Secret, env: Mapping[str, str], *, name: str | None = None
) -> SecretValue:
    """
    Return the value of *secret*; for a file, its text without the last line break.

    Args:
        name: Key under `secrets`, for the error.

    Raises:
        InventoryError: The variable or file is missing or empty, the text has more than one line,
            or users other than the owner may read the file.
    """
    what = f"secrets.{name}" if name else "the secret"
    if secret.env is not None:
        text = env.get(secret.env, "")
        if not text:
            state = "empty" if secret.env in env else "not set"
            raise InventoryError(
                f"{what}: has no value",
                why=f"the environment variable {secret.env} is {state}",
                fix=f"export {secret.env}, or give {what} a file in place of env",
            )
        return _one_line(text, what, f"the environment variable {secret.env}")
    assert secret.file is not None
    return _one_line(read_private(secret.file, what), what, str(secret.file))


def _is_for_slipway(path: Path) -> bool:
    """
    Return whether the file, or the directory that it is in, is named for slipway.

    A fleet file may come from somebody else, and its secrets go to the hosts that it names.  So it
    cannot name any private file of the operator, such as the token of another program.
    """
    path = path.resolve()  # a link may have the right name
    home = os.environ.get("HOME")
    is_home = home is not None and path.parent == Path(home).resolve()
    return path.name.startswith(_PREFIX) or (path.parent.name.startswith(_PREFIX) and not is_home)


def read_private(path: Path, what: str, *, holds: str = "the secret, as its only line") -> str:
    """
    Return the text of *path*, a file of this user alone, without its last line break.

    Args:
        what: Key of the fleet file that names it, for the error.
        holds: What the file should contain, for the error.

    Raises:
        InventoryError: It is missing, empty, too long, not named for slipway, or other users may
            read it.
    """
    if not _is_for_slipway(path):
        raise InventoryError(
            f"{what}: {path} is not a file for secrets of slipway",
            why=f"neither the file nor the directory that it is in begins with {_PREFIX!r}",
            fix=f"move it to ~/.config/slipway/{path.name} and name that",
        )
    try:
        # A pipe or device that the fleet file names would be waited for, or read, without end.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, encoding="utf-8", newline="") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InventoryError(
                    f"{what}: {path} is no regular file",
                    why="it is a folder, a pipe or a device",
                    fix=f"write {holds} to {path}, with mode 0600",
                )
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InventoryError(
                    f"{what}: other users may read {path}",
                    why=f"its mode is {stat.S_IMODE(mode):04o}; at most 0600 is allowed",
                    fix=f"chmod 600 {path}; replace the secret if others may have read it",
                )
            text = file.read(_SECRET_MAX + 1)
            if len(text) > _SECRET_MAX:
                raise InventoryError(
                    f"{what}: {path} is too long",
                    why=f"it has more than {_SECRET_MAX} characters",
                    fix=f"write {holds} to {path}",
                )
            text = text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise InventoryError(
            f"{what}: {path} cannot be read",
            why=str(error.strerror),
            fix=f"write {holds} to {path}, with mode 0600 and owned by this user",
        ) from error
    if not text:
        raise InventoryError(
            f"{what}: {path} contains no text",
            why="the file is empty or not UTF-8",
            fix=f"write {holds} to {path}",
        )
    return text


def _one_line(text: str, what: str, where: str) -> SecretValue:
    # It is written to an environment file, where a second line would be another variable.
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InventoryError(
            f"{what}: is more than one line of text",
            why=f"{where} contains a control character",
            fix=f"write the secret to {where}, as its only line",
        )
    return SecretValue(text)
