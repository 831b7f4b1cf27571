"""
What was found on a host, in one look.  Nouns only; `remote/look.py` fills them in over there.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(Frozen):
    """
    What to look for; the parts that several resources ask for are merged.

    Attributes:
        paths: Each with what it should hash to: "" asks for no hash.  Of a text that hashes to
            something else the look brings the text too, for the diff, unless it is in `secret`.
        port: The public port: who listens on it?
        room: Paths whose file systems' free bytes are asked for.
    """

    paths: dict[str, str] = {}
    secret: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    listings: tuple[str, ...] = ()
    port: int | None = None
    room: tuple[str, ...] = ()
    haproxy_socket: str | None = None
    lease: str | None = None

    def merged(self, other: "Question") -> "Question":
        found: dict[str, Any] = {}
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, dict):
                found[name] = mine | theirs
            elif isinstance(mine, tuple):
                found[name] = (*mine, *(x for x in theirs if x not in mine))
            else:
                found[name] = theirs if theirs is not None else mine
        return Question(**found)


class Path(Frozen):
    """
    Attributes:
        mode: Permission bits in octal, four digits.
        sha256: None where no hash was asked for.
        text: Of a file that differs from what it should be, where it may be shown.
    """

    type: Literal["file", "directory", "link", "other"]
    mode: str
    owner: str
    group: str
    size: int
    target: str | None = None
    sha256: str | None = None
    text: str | None = None


class User(Frozen):
    group: str
    shell: str
    home: str


class Unit(Frozen):
    load: str  # loaded, not-found, bad-setting, ...
    active: str  # active, inactive, failed, ...
    enabled: str  # enabled, disabled, static, ...; empty for an instance that is none of these
    stale: bool  # its file changed after systemd read it


class Listener(Frozen):
    program: str
    pid: int


class Lease(Frozen):
    owner: str
    release: str | None
    left_s: float  # by the host's own clock


class Seen(Frozen):
    """
    Attributes:
        paths: None where nothing is there.
        packages: Installed version; None for one that is not installed.
        haproxy: Description line of the running HAProxy, which names the configuration that it
            has loaded; None where none answers.
        pythons: Versions that the host can make a venv with, such as "3.11".
        driver: Version of the loaded NVIDIA kernel module; None without one.
    """

    paths: dict[str, Path | None]
    packages: dict[str, str | None]
    users: dict[str, User | None]
    units: dict[str, Unit]
    listings: dict[str, dict[str, int]]
    listeners: tuple[Listener, ...]
    room: dict[str, int]
    haproxy: str | None
    lease: Lease | None
    pythons: tuple[str, ...]
    machine: str
    os_id: str
    codename: str
    has_apt: bool
    driver: str | None
