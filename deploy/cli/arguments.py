"""
What flags and environment variables mean: paths, numbers, the fleet.
"""

import os
import re
import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import UsageError
from deploy.foreign_text import visible

if TYPE_CHECKING:
    from deploy.inventory.schema import Fleet

CALLER = "SLIPWAY_CWD"  # the directory that ./inv was called from; ./inv itself changes to the root
_FLEET = "INVOKE_FLEET"
_OURS = ("INVOKE_", "SLIPWAY_")


def drop_empty_variables(env: MutableMapping[str, str]) -> None:
    """
    Remove the variables of slipway and invoke that are set to nothing: empty means absent.
    """
    for name in [n for n, value in env.items() if n.startswith(_OURS) and not value]:
        del env[name]


def path_from_caller(text: str) -> Path:
    """
    Return *text* as an absolute path, read from the directory that ./inv was called from.

    Raises:
        UsageError: It begins with ~ and the user has no home directory.
    """
    base = Path(os.environ.get(CALLER) or Path.cwd()).absolute()
    try:
        return base / Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{text}: ~ has no meaning here", why=str(error), fix="set HOME, or write the path out"
        ) from None


_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


def fingerprints(text: str, *, yes: bool) -> frozenset[str]:
    """
    Return the fingerprints in *text*, as `ssh-keygen -l` prints them, joined by commas.

    Raises:
        UsageError: One has another form, or *yes* comes without any: keys would be recorded that
            nobody has compared.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not _FINGERPRINT.fullmatch(part):
            raise UsageError(
                f"--fingerprint {visible(part)}: not a fingerprint",
                why="it should be SHA256: and 43 characters",
                fix="on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            )
    if yes and not parts:
        raise UsageError(
            "--yes needs --fingerprint",
            why="a key that nobody compares may be that of another machine",
            fix="add --fingerprint SHA256:..., from the host's console, or leave --yes out",
        )
    return frozenset(parts)


def output_file(flag: str, text: str) -> Path:
    """
    Return *text* as the path of a file to write, read from the caller's directory.

    Raises:
        UsageError: It names a folder, or cannot be written; checked before the work begins.
    """
    path = path_from_caller(text)
    shown = visible(text, limit=200)
    try:
        why = _unwritable(path)
        is_folder = text.endswith("/") or path.is_dir()
    except (OSError, ValueError) as error:  # too long, a file in the place of a folder, NUL
        why, is_folder = getattr(error, "strerror", None) or str(error), False
    if is_folder:
        raise UsageError(
            f"--{flag} {shown}: is a folder",
            why=f"{visible(str(path), limit=400)} should be a file",
            fix=f"name a file in it: --{flag} {shown.rstrip('/')}/{flag}.xml",
        )
    if why is not None:
        raise UsageError(
            f"--{flag} {shown}: cannot be written",
            why=why,
            fix=f"name a file in a folder that you may write to, such as --{flag} {flag}.xml",
        )
    return path


def _unwritable(path: Path) -> str | None:
    """
    Return why a file at *path* cannot be written, or could be waited for without end; None: it can.

    Folders above it are made where they are missing.
    """
    shown = visible(str(path), limit=400)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"{shown} is a link to nothing"
        above = next(p for p in path.parents if os.path.lexists(p))
        if not above.is_dir():
            return f"{visible(str(above), limit=400)} is no folder"
        can_write = os.access(above, os.W_OK | os.X_OK)
        return None if can_write else f"you may not write to {visible(str(above), limit=400)}"
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
        return f"{shown} is no regular file"
    return None if os.access(path, os.W_OK) else f"you may not write to {shown}"


def fleet_name(flag: str | None, configured: str | None) -> str:
    """
    Return the fleet to work on: a name, or the path of a fleet file.

    A path in the flag or in INVOKE_FLEET is read from the caller's directory, one in invoke.yaml
    from the root of the repository.

    Args:
        flag: Value of `--hosts`; None or empty: not given.
        configured: `fleet` of invoke's configuration.

    Raises:
        UsageError: No fleet is named anywhere.
    """
    name = flag or os.environ.get(_FLEET) or configured
    if not name:
        raise UsageError(
            "no fleet is named",
            why="neither --hosts nor INVOKE_FLEET is given, and invoke.yaml has no `fleet`",
            fix="inv TASK --hosts NAME",
        )
    is_from_caller = bool(flag or os.environ.get(_FLEET))
    return str(path_from_caller(name)) if is_from_caller and name.endswith(".yml") else name


def release_name(flag: str, text: str | None) -> str | None:
    """
    Return *text*, the name of a release or bundle: a version, a release id or a digest.

    None means that the flag was not given.  An empty text is refused: a script whose variable is
    not set would release, or go back to, something else than it names.

    Raises:
        UsageError: It is empty or has other characters; checked before a host is asked.
    """
    if text is None:
        return None
    from deploy.host.names import RELEASE

    try:
        return RELEASE.parse(text)
    except ValueError as error:
        raise UsageError(
            f"--{flag} {visible(text, limit=80)}: not valid",
            why=str(error),
            fix=f"--{flag} v1.3.0; inv status shows what is on hosts",
        ) from None


def whole_number(flag: str, text: object) -> int:
    """
    Return *text* as a whole number.

    Raises:
        UsageError: It is none.
    """
    # int() also reads digits of other scripts, underscores and white space.
    if re.fullmatch(r"-?[0-9]{1,9}", str(text)):
        return int(str(text))
    raise UsageError(
        f"--{flag} {visible(str(text), limit=80)}: not a whole number",
        why="it has other characters than digits, or too many",
        fix=f"give a number, such as --{flag} 10",
    )


def canary_share(text: str, fleet: "Fleet") -> int:
    """
    Return the canary's share of the traffic, in percent; without *text*, that of the fleet file.

    Raises:
        UsageError: It is no whole number, or lies outside 1 to 50.
    """
    from deploy.release.plan import check_share

    if not text:
        return fleet.release.canary.share_pct
    return check_share(whole_number("canary", text))
