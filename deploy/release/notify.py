"""
Posts the state of a release to webhooks: one message for each release, updated.

Never in the way of a release: each webhook has a thread of its own, which sends only the newest
state.  Neither URLs nor secrets are part of any text that is reported.
"""

import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.clock import Clock
from deploy.errors import InventoryError
from deploy.foreign_text import visible
from deploy.inventory.schema import Fleet
from deploy.inventory.secrets import SecretValue, resolve_secret
from deploy.release.events import ReleaseEvent, ReleaseOutcome, Report
from deploy.release.http_errors import describe

if TYPE_CHECKING:
    import httpx

REQUEST_S = 5.0  # the longest that one message takes, whatever the server does
CLOSE_S = 5.0  # the longest wait for the last state of all webhooks
_PAUSE_S = 1.0  # between two messages to one webhook; doubled after each error
_PAUSE_MAX_S = 30.0
_RETRY_S = 0.3  # the same for the last state
_PASSING = (408, 425, 429)  # statuses of 4xx after which the same message may be accepted
_TEXT_MAX = 1000  # characters
_URL = re.compile(r"https://[A-Za-z0-9.\-\[\]:]+/[!-~]{0,2000}")  # visible ASCII, no credentials
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_OWN_EVENTS = ("hook.", "notify.", "action.")


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """
    A webhook with its secrets.

    Attributes:
        name: Its place in the fleet file, for what is reported.
        send_updates: False: only the end of a release is sent.
    """

    name: str
    url: SecretValue
    headers: tuple[tuple[str, SecretValue], ...]
    send_updates: bool


def resolve_webhooks(fleet: Fleet, env: Mapping[str, str]) -> tuple[WebhookTarget, ...]:
    """
    Return the webhooks of *fleet* with the values of their secrets.

    Raises:
        InventoryError: A secret has no value, or one that is no URL or no value of a header.
    """
    targets = []
    for index, webhook in enumerate(fleet.notify):
        if webhook.secret is None:
            url = SecretValue(webhook.webhook)
        else:
            url = _secret(fleet, env, webhook.secret, _URL, "a URL: https://HOST/PATH")
        headers = tuple(
            (header.name, _secret(fleet, env, header.secret, _HEADER_VALUE, "visible ASCII"))
            for header in webhook.headers
        )
        name = f"release.notify[{index}]"
        targets.append(WebhookTarget(name, url, headers, webhook.send == "updates"))
    return tuple(targets)


def _secret(
    fleet: Fleet, env: Mapping[str, str], name: str, form: re.Pattern[str], meaning: str
) -> SecretValue:
    value = resolve_secret(fleet.secrets[name], env, name=name)
    if not form.fullmatch(value.reveal()):
        raise InventoryError(
            f"secrets.{name}: its value is not {meaning}",
            why="release.notify uses it for that (the value is not shown)",
            fix=f"correct the value of secrets.{name}",
        )
    return value


class Notifier:
    """
    Gives the newest state of one release to its webhooks.

    Args:
        report: Gets the event notify.failed, once for each problem, from the webhooks' threads.
        tls: Certificates that are trusted; None: those of this machine, or of SSL_CERT_FILE.
    """

    def __init__(
        self,
        targets: Sequence[WebhookTarget],
        *,
        release: str,
        fleet: str,
        report: Report,
        clock: Clock,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        for library in ("httpx", "httpcore"):  # they log URLs, which `--debug` would show
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self._release, self._fleet = release, fleet
        self._report, self._clock = report, clock
        self._lock = threading.Lock()
        self._number = 0
        self._senders = [_Sender(target, tls, self._failed) for target in targets]

    def __call__(self, event: ReleaseEvent) -> None:
        """
        Take *event* as the newest state, if it concerns the whole fleet or is a failure of a host.
        """
        is_failure = event.name.endswith((".failed", ".stuck"))
        if event.name.startswith(_OWN_EVENTS) or (event.host is not None and not is_failure):
            return
        text = f"{event.host}: {event.text}" if event.host else event.text
        self._put(event.name, "running", text)

    def ended(self, outcome: ReleaseOutcome) -> None:
        """
        Take *outcome* as the last state.
        """
        text = f"{outcome.ending}: {outcome.reason}"
        self._put("release.ended", str(outcome.ending), text, is_final=True)

    def close(self) -> None:
        """
        Wait at most 5 s until every webhook has its newest state; report those that do not.
        """
        until_s = time.monotonic() + CLOSE_S
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            problem = sender.wait(until_s - time.monotonic())
            if problem is not None:
                self._failed(f"{sender.name}: the last state was not delivered: {problem}")

    def _put(self, event: str, state: str, text: str, *, is_final: bool = False) -> None:
        with self._lock:
            self._number += 1
            message = {
                "id": f"{self._fleet}/{self._release}",
                "number": self._number,
                "at": self._clock.utc().isoformat(),
                "fleet": self._fleet,
                "release": self._release,
                "state": state,
                "event": event,
                "is_final": is_final,
                "text": visible(f"{self._fleet}: {self._release}: {text}", limit=_TEXT_MAX),
            }
            for sender in self._senders:
                sender.put(message)

    def _failed(self, text: str) -> None:
        self._report(ReleaseEvent(self._clock.utc(), "notify.failed", text))


class _Sender:
    """
    The thread of one webhook: sends the newest message, and again after an error that may pass.
    """

    def __init__(
        self, target: WebhookTarget, tls: ssl.SSLContext | None, failed: Callable[[str], None]
    ) -> None:
        self.name = target.name
        self._target, self._tls, self._failed = target, tls, failed
        self._changed = threading.Condition()
        self._pending: Mapping[str, Any] | None = None
        self._problem: str | None = None  # of the newest message that was tried
        self._is_finishing = self._is_stopped = False
        self._thread: threading.Thread | None = None

    def put(self, message: Mapping[str, Any]) -> None:
        if not (self._target.send_updates or message["is_final"]):
            return
        with self._changed:
            self._pending = message
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._is_finishing = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> str | None:
        """
        Return why the newest message was not delivered after *timeout_s*; None if it was.
        """
        if self._thread is not None:
            self._thread.join(max(0.0, timeout_s))
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
            is_on_its_way = self._thread is not None and self._thread.is_alive()
            return self._problem or ("it did not answer in time" if is_on_its_way else None)

    def _work(self) -> None:
        reported: set[str] = set()
        pause_s = _PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._is_finishing)
                message, self._pending = self._pending, None
                if message is None or self._is_stopped:
                    return
            attempt = self._attempt(message)
            with self._changed:
                self._problem = attempt.problem
                if attempt.may_pass and not self._pending:
                    self._pending = message
                is_last = self._is_finishing  # `wait` reports it
            if attempt.problem is not None and attempt.problem not in reported and not is_last:
                reported.add(attempt.problem)
                self._failed(f"{self.name}: {attempt.problem}")
            if is_last and not attempt.may_pass:
                continue  # what is newer, else the end
            pause_s = _PAUSE_S if attempt.problem is None else min(2 * pause_s, _PAUSE_MAX_S)
            with self._changed:
                self._changed.wait_for(
                    self._is_in_a_hurry(is_last), _RETRY_S if is_last else pause_s
                )

    def _is_in_a_hurry(self, was_finishing: bool) -> Callable[[], bool]:
        return lambda: self._is_stopped or (self._is_finishing and not was_finishing)

    def _attempt(self, message: Mapping[str, Any]) -> "_Attempt":
        """
        Send *message* in a thread of its own; return when it has ended, or is given up.
        """
        attempt = _Attempt(self._target, message, self._tls, self._changed)
        with self._changed:
            # The last state does not wait for an older one that is slow; `number` orders them.
            self._changed.wait_for(
                lambda: attempt.has_ended or (self._is_finishing and self._pending), REQUEST_S
            )
        attempt.give_up()
        return attempt


class _Attempt:
    """
    One message on its way.

    Attributes:
        problem: Why it was not delivered; None if it was.
        may_pass: The same message may be accepted later.
    """

    def __init__(
        self,
        target: WebhookTarget,
        message: Mapping[str, Any],
        tls: ssl.SSLContext | None,
        changed: threading.Condition,
    ) -> None:
        self.has_ended = False
        self.problem: str | None = f"it did not answer within {REQUEST_S:g} s"
        self.may_pass = True
        self._target, self._changed = target, changed
        self._body = json.dumps(message).encode()
        self._tls = tls
        self._client: httpx.Client | None = None
        threading.Thread(target=self._run, name=f"{target.name} post", daemon=True).start()

    def give_up(self) -> None:
        """
        Close the connection of a message that is still on its way, whatever the server still sends.
        """
        if not self.has_ended and self._client is not None:
            self._client.close()

    def _run(self) -> None:
        try:
            status = self._post()
            problem, may_pass = _meaning(status), status in _PASSING or status >= 500
        except Exception as error:  # its text may have the URL
            problem, may_pass = describe(error, REQUEST_S), True
        with self._changed:
            self.problem, self.may_pass = problem, may_pass
            self.has_ended = True
            self._changed.notify_all()

    def _post(self) -> int:
        headers = {"Content-Type": "application/json", "User-Agent": "slipway"}
        headers |= {name: value.reveal() for name, value in self._target.headers}
        import httpx  # loaded where it is used: it takes 0.1 s, and most fleets have no webhook

        with httpx.Client(
            verify=self._tls or ssl.create_default_context(),
            timeout=REQUEST_S,
            follow_redirects=False,
        ) as self._client:
            url = self._target.url.reveal()
            with self._client.stream("POST", url, content=self._body, headers=headers) as response:
                return response.status_code  # its body is not read


def _meaning(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"it answers with a redirect (status {status}), which is not followed"
    return f"it answers with status {status}"
