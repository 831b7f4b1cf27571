"""
The verbs of the API keys: one list, in a file that the runtime reads.

The file has hashes of tokens, never a token.  It is replaced as a whole, and only while it is the
one that the caller has read: two operators cannot undo each other's change.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from deploy.host.codec import Malformed, decode, encode
from deploy.host.files import locked, write_atomic
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.layout import USER, Layout
from deploy.host.protocol import (
    KEY_MODELS_MAX,
    KEY_SECRETS_MAX,
    KEYS_BYTES_MAX,
    KEYS_MAX,
    ApiKey,
    Call,
    ErrorKind,
    HostError,
    KeysHeld,
    KeysRead,
    KeysStamp,
    KeysWrite,
    KeysWritten,
)
from deploy.host.reserve import with_room
from deploy.host.system import System
from deploy.host.trusted_files import open_plain

FORMAT = 1  # of the file; raised where a runtime that ignores what is new would let in too many
_REASON_MAX = 200  # characters
_SHORT_MAX = 200  # bytes of the host's token or its hash
_HOST_TOKEN_MIN = 43  # characters of 256 random bits


def read(system: System, _call: Call, _request: KeysRead) -> KeysHeld:
    """
    Return the list as it is stored.
    """
    return stored(system.layout)


def write(system: System, call: Call, request: KeysWrite) -> KeysWritten:
    """
    Replace the list, if it is the expected one.
    """
    content = file_of(request.version, request.keys)
    _check(request.keys, content)
    stamp = _stamp(request.version, content)
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        held = stored(system.layout)
        if held.stamp == stamp:
            return KeysWritten(True, held)
        if held.stamp != request.expected:
            return KeysWritten(False, held)
        group = system.account(USER).gid
        _make_host_token(system, group)
        path = system.layout.api_keys
        with_room(system, lambda: write_atomic(path, content, 0o640, group))
        # Names alone: the journal has no hash of a token.
        changed = _changed(held.keys, request.keys)
        append_event(system, call, request.VERB, {"version": stamp.version, "changed": changed})
    return KeysWritten(True, KeysHeld(stamp, request.keys))


def _make_host_token(system: System, group: int) -> None:
    """
    Let the host program send requests of its own: golden prompts, and one to confirm a release.

    Repairs a hash that is lost or is not the token's, and replaces a token that is lost.
    """
    layout = system.layout
    token = _short_text(layout.host_token)
    is_new = len(token) < _HOST_TOKEN_MIN
    if is_new:
        token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode()).hexdigest()
    if _short_text(layout.host_key) != digest:
        with_room(system, lambda: write_atomic(layout.host_key, digest.encode(), 0o640, group))
    if is_new:
        with_room(system, lambda: write_atomic(layout.host_token, token.encode(), 0o600))


def _short_text(path: Path) -> str:
    """
    Return the text of a small file; the empty text where it cannot be read.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            return file.read(_SHORT_MAX).decode("ascii").strip()
    except (OSError, ValueError, HostError):
        return ""


def stored(layout: Layout) -> KeysHeld:
    """
    Return the stored list; a damaged one has no stamp, and says why.
    """
    try:
        content = _read_file(layout)
        document: Any = json.loads(content)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise Malformed("it is not a list of keys of this format")
        found: Any = document.get("keys")
        entries = [_renamed(entry, "name", "key_name") for entry in found]
        keys = decode(tuple[ApiKey, ...], entries, "keys")
        version = decode(KeysStamp, {"version": document.get("version"), "sha256": "0" * 64})
        _check(keys, content)
    except FileNotFoundError:
        return KeysHeld(None, ())
    except (OSError, ValueError, TypeError, RecursionError, HostError) as error:
        why = error.why if isinstance(error, HostError) else str(error)
        return KeysHeld(None, (), why[:_REASON_MAX])
    return KeysHeld(_stamp(version.version, content), keys)


def file_of(version: int, keys: tuple[ApiKey, ...]) -> bytes:
    """
    Return the file of a list: the same bytes for the same list.
    """
    entries = [_renamed(entry, "key_name", "name") for entry in encode(keys)]
    document = {"format": FORMAT, "version": version, "keys": entries}
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()


def _renamed(entry: Any, old: str, new: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or new in entry:
        raise Malformed("an entry of keys is no key")
    return {new if name == old else name: value for name, value in entry.items()}


def _read_file(layout: Layout) -> bytes:
    with os.fdopen(open_plain(layout.api_keys), "rb") as file:
        content = file.read(KEYS_BYTES_MAX + 1)
    if len(content) > KEYS_BYTES_MAX:
        raise Malformed(f"it has more than {KEYS_BYTES_MAX} bytes")
    return content


def _check(keys: tuple[ApiKey, ...], content: bytes) -> None:
    names = [key.key_name for key in keys]
    hashes = [secret.sha256 for key in keys for secret in key.secrets]
    problem = None
    if len(keys) > KEYS_MAX or len(content) > KEYS_BYTES_MAX:
        problem = (
            f"it has {len(keys)} keys in {len(content)} bytes; at most {KEYS_MAX} in "
            f"{KEYS_BYTES_MAX} bytes are kept"
        )
    elif names != sorted(set(names)):
        problem = "its keys are not ordered by name, each once"
    elif len(set(hashes)) != len(hashes):
        problem = "two keys have the same token"
    elif any(len(k.secrets) > KEY_SECRETS_MAX or len(k.models) > KEY_MODELS_MAX for k in keys):
        problem = f"a key has more than {KEY_SECRETS_MAX} tokens or {KEY_MODELS_MAX} models"
    if problem:
        raise HostError(
            ErrorKind.USAGE, "the list of API keys is not valid", problem, "inv keys.list"
        )


def _stamp(version: int, content: bytes) -> KeysStamp:
    return KeysStamp(version, hashlib.sha256(content).hexdigest())


def _changed(old: tuple[ApiKey, ...], new: tuple[ApiKey, ...]) -> list[str]:
    before = {key.key_name: key for key in old}
    after = {key.key_name: key for key in new}
    return sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
