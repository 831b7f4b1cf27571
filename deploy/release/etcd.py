"""
Calls an etcd through its JSON gateway; one deadline covers all of its endpoints.

Source: etcd 3.4 and later, "gRPC gateway".  Keys and values are base64, 64-bit numbers are text.
"""

import base64
import binascii
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from deploy.errors import DeployError, PreconditionError, TransportError
from deploy.foreign_text import says
from deploy.inventory.secrets import SecretValue
from deploy.release.http_errors import describe

WITHIN_S = 5.0
_ENDPOINT_S = 2.0  # the longest that one endpoint is waited for, while others are left
_WORDS_MAX = 300  # bytes of an answer that is not JSON
_ANSWER_MAX = 8 << 20  # bytes; etcd takes values of at most 1.5 MiB
_UNAVAILABLE = frozenset({4, 8, 14})  # DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE of gRPC
_UNAUTHENTICATED = 16  # of gRPC: the token has expired

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """
    How to reach an etcd.

    Attributes:
        endpoints: scheme://HOST:PORT of its members.
        ca: None: the authorities that this machine trusts.
        cert, key: Of this client; both or none.
        user, password: Of etcd's own authentication; both or none.
    """

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: SecretValue | None = None


@dataclass(frozen=True, slots=True)
class KeyValue:
    """
    The value of a key, with the revision of its last change; b"" and 0 where it has none.
    """

    value: bytes = b""
    mod_revision: int = 0


@dataclass(frozen=True, slots=True)
class TxnResult:
    """
    Attributes:
        values: Of the ranges that were asked for, in their order.
    """

    succeeded: bool
    values: tuple[KeyValue, ...]


class Malformed(ValueError):
    """
    An answer that is not one of etcd's.
    """


class EtcdClient:
    """
    One etcd.  Every call ends within its deadline, whatever the servers do.
    """

    def __init__(self, settings: EtcdSettings, *, within_s: float = WITHIN_S) -> None:
        self._settings, self._within_s = settings, within_s
        self._endpoints = list(settings.endpoints)  # the last one that answered comes first
        self._client: httpx.Client | None = None
        self._token: str | None = None
        self._revision = 0  # the newest that was seen
        self._lock = threading.Lock()

    def txn(
        self,
        *,
        unchanged: Mapping[str, int] | None = None,
        puts: Sequence[tuple[str, bytes, int]] = (),
        ranges: Sequence[str] = (),
    ) -> TxnResult:
        """
        Put and read keys in one step, if the keys *unchanged* still have their mod_revision.

        Args:
            puts: (key, value, id of a lease or 0).
            ranges: Keys to read; linearizable.

        Raises:
            TransportError: No endpoint answered; the step may have been done.
            PreconditionError: etcd refuses the request.
        """
        document = {
            "compare": [
                {
                    "key": _b64(key),
                    "target": "MOD",
                    "result": "EQUAL",
                    "mod_revision": str(revision),
                }
                for key, revision in (unchanged or {}).items()
            ],
            "success": [
                {"request_put": {"key": _b64(key), "value": _b64(value), "lease": str(lease)}}
                for key, value, lease in puts
            ]
            + [{"request_range": {"key": _b64(key)}} for key in ranges],
        }
        return self._call("/v3/kv/txn", document, lambda answer: self._txn_result(answer, ranges))

    def grant(self, ttl_s: int) -> int:
        """
        Return the id of a new lease.
        """
        return self._call("/v3/lease/grant", {"TTL": str(ttl_s)}, _lease_id)

    def keep_alive(self, lease: int) -> bool:
        """
        Renew *lease*; False if it has expired.
        """
        return self._call("/v3/lease/keepalive", {"ID": str(lease)}, _is_alive)

    def revoke(self, lease: int) -> None:
        """
        End *lease*; the keys that were put with it are deleted.
        """
        self._call("/v3/lease/revoke", {"ID": str(lease)}, lambda answer: None)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _txn_result(self, answer: Mapping[str, Any], ranges: Sequence[str]) -> TxnResult:
        revision = _number(_mapping(answer, "header"), "revision")
        with self._lock:
            if revision < self._revision:
                raise Malformed(f"its revision is {revision}, after {self._revision}")
            self._revision = revision
        succeeded = answer.get("succeeded", False)
        if not isinstance(succeeded, bool):
            raise Malformed("succeeded is no boolean")
        if not succeeded:
            return TxnResult(False, ())
        responses = [_mapping(r, "response_range") for r in _list(answer, "responses")
                     if isinstance(r, Mapping) and "response_range" in r]  # fmt: skip
        if len(responses) != len(ranges):
            raise Malformed(f"{len(responses)} ranges, and {len(ranges)} were asked for")
        values = [_key_value(r, key) for r, key in zip(responses, ranges, strict=True)]
        return TxnResult(True, tuple(values))

    # -- one call

    def _call(
        self,
        path: str,
        document: Mapping[str, Any],
        parse: Callable[[Mapping[str, Any]], Result],
    ) -> Result:
        outcome: list[Result | BaseException] = []
        until_s = time.monotonic() + self._within_s

        def run() -> None:
            try:
                outcome.append(self._try_each(path, document, parse, until_s))
            except BaseException as error:
                outcome.append(error)

        # httpx limits each read and write; a server that sends a byte now and then has no limit.
        thread = threading.Thread(target=run, name="etcd", daemon=True)
        thread.start()
        thread.join(self._within_s)
        if not outcome:
            self.close()
            raise self._unreachable(f"no answer within {self._within_s:g} s")
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def _try_each(
        self,
        path: str,
        document: Mapping[str, Any],
        parse: Callable[[Mapping[str, Any]], Result],
        until_s: float,
    ) -> Result:
        problems = []
        for endpoint in tuple(self._endpoints):
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            timeout_s = left_s if len(self._endpoints) == 1 else min(left_s, _ENDPOINT_S)
            try:
                result = parse(self._post_authenticated(endpoint, path, document, timeout_s))
            except _Unavailable as error:
                problems.append(f"{endpoint}: {error}")
            except Malformed as error:
                problems.append(f"{endpoint}: its answer is not etcd's: {error}")
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                problems.append(f"{endpoint}: {describe(error, timeout_s)}")
            else:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
                return result
        raise self._unreachable("; ".join(problems))

    def _post_authenticated(
        self, endpoint: str, path: str, document: Mapping[str, Any], timeout_s: float
    ) -> Mapping[str, Any]:
        user, password = self._settings.user, self._settings.password
        if user is None or password is None:
            return self._post(endpoint, path, document, timeout_s)
        for is_last in (False, True):
            if self._token is None:
                credentials = {"name": user, "password": password.reveal()}
                answer = self._post(endpoint, "/v3/auth/authenticate", credentials, timeout_s)
                self._token = _text(answer, "token")
            try:
                return self._post(endpoint, path, document, timeout_s, token=self._token)
            except _TokenExpired:
                self._token = None
                if is_last:
                    raise _Unavailable("it does not accept its own token") from None
        raise AssertionError("the last attempt returns or raises")

    def _post(
        self,
        endpoint: str,
        path: str,
        document: Mapping[str, Any],
        timeout_s: float,
        token: str | None = None,
    ) -> Mapping[str, Any]:
        client = self._client
        if client is None:
            client = self._client = self._open()
        with client.stream(
            "POST",
            endpoint + path,
            content=json.dumps(document).encode(),
            headers={"Content-Type": "application/json"}
            | ({"Authorization": token} if token else {}),
            timeout=timeout_s,
        ) as response:
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > _ANSWER_MAX:
                    raise Malformed(f"it has more than {_ANSWER_MAX >> 20} MiB")
        if response.status_code == 200:
            return _parse(bytes(body))
        raise self._refusal(response.status_code, bytes(body))

    def _open(self) -> httpx.Client:
        settings = self._settings
        try:
            tls = ssl.create_default_context(cafile=str(settings.ca) if settings.ca else None)
            if settings.cert is not None and settings.key is not None:
                # Without a password: OpenSSL would ask the terminal for one.
                tls.load_cert_chain(settings.cert, settings.key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            paths = [str(p) for p in (settings.ca, settings.cert, settings.key) if p is not None]
            problem = error.strerror if isinstance(error, OSError) else str(error)
            raise PreconditionError(
                "the certificates for etcd cannot be used",
                why=f"{', '.join(paths)}: {problem}",
                fix="correct state.ca, state.cert and state.key of the fleet file",
            ) from None
        return httpx.Client(verify=tls, trust_env=False, follow_redirects=False)

    def _refusal(self, status: int, body: bytes) -> Exception:
        try:
            answer = _parse(body)
        except Malformed:  # of the gateway itself, or of a proxy
            answer = {"message": body[:_WORDS_MAX].decode(errors="replace")}
        code, message = answer.get("code"), answer.get("message") or answer.get("error")
        words = says("it", message if isinstance(message, str) else "")
        if code == _UNAUTHENTICATED:
            return _TokenExpired(words)
        if code in _UNAVAILABLE or status >= 500 or not isinstance(code, int):
            return _Unavailable(f"status {status}; {words}")
        return PreconditionError(
            "etcd refuses the request",
            why=f"status {status}; {words}",
            fix="check state.user, its password and its permissions for the keys of state.prefix",
        )

    def _unreachable(self, why: str) -> DeployError:
        return TransportError(
            f"etcd at {', '.join(self._settings.endpoints)} cannot be used",
            why=why,
            fix="bring it back, or correct state of the fleet file; "
            "going back needs no etcd: inv rollback",
        )


class _Unavailable(Exception):
    """
    This endpoint cannot do it now; another one may.
    """


class _TokenExpired(Exception):
    """
    The user has to authenticate again.
    """


# -- answers


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    if not isinstance(answer, dict):
        raise Malformed("it is no object")
    return answer


def _mapping(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"{name} is missing or no object")
    return value


def _list(answer: Mapping[str, Any], name: str) -> list[Any]:
    value = answer.get(name, [])  # an empty list is left out
    if not isinstance(value, list):
        raise Malformed(f"{name} is no list")
    return value


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise Malformed(f"{name} is missing or no text")
    return value


def _number(answer: Mapping[str, Any], name: str) -> int:
    """
    Return a 64-bit number that is not negative; 0 is left out.
    """
    value = answer.get(name, "0")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    raise Malformed(f"{name} is no number")


def _key_value(answer: Mapping[str, Any], key: str) -> KeyValue:
    found = _list(answer, "kvs")
    if not found:
        return KeyValue()
    if len(found) != 1 or not isinstance(found[0], Mapping):
        raise Malformed("a range of one key has several")
    entry = found[0]
    if _bytes(entry, "key") != key.encode():
        raise Malformed("it has another key than was asked for")
    revision = _number(entry, "mod_revision")
    if revision == 0:
        raise Malformed("mod_revision is missing")
    return KeyValue(_bytes(entry, "value"), revision)


def _bytes(answer: Mapping[str, Any], name: str) -> bytes:
    value = answer.get(name, "")
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise Malformed(f"{name} is not base64") from None


def _lease_id(answer: Mapping[str, Any]) -> int:
    if lease := _number(answer, "ID"):
        return lease
    raise Malformed("it has no id of a lease")


def _is_alive(answer: Mapping[str, Any]) -> bool:
    return _number(_mapping(answer, "result"), "TTL") > 0


def _b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
