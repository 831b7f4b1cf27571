"""
Notifications to a real HTTPS server: the last state arrives, and nothing waits for a bad server.
"""

import logging
import socket
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest

from deploy.errors import InventoryError
from deploy.inventory.schema import Fleet, Secret, Webhook
from deploy.inventory.secrets import SecretValue
from deploy.release import notify
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome
from deploy.release.notify import Notifier, WebhookTarget, resolve_webhooks
from tests.unit.deploy.release import webhook_server as servers
from tests.unit.deploy.release.webhook_server import wait_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OUTCOME = ReleaseOutcome("r1", Ending.PROMOTED, "0 of 60 failed", {})
CLOCK = SimpleNamespace(utc=lambda: NOW)
SECRETS = ("s3cret-path", "s3cret-token", "127.0.0.1")


@pytest.fixture
def server(tmp_path):
    with servers.webhook_server(tmp_path) as one:
        yield one


@pytest.fixture(autouse=True)
def logs():
    """
    The libraries log as they do by default.
    """
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.NOTSET)


@pytest.fixture
def make(server, monkeypatch):
    """
    Return a function that makes a Notifier of URLs; the server's own without any.

    A busy machine may be slow: what has to be delivered has a minute.
    """
    monkeypatch.setattr(notify, "_PAUSE_S", 0.05)
    monkeypatch.setattr(notify, "REQUEST_S", 60.0)
    monkeypatch.setattr(notify, "CLOSE_S", 60.0)

    def make(*urls, send_updates=True, tls=server.trust):
        events = []
        headers = (("Authorization", SecretValue("Bearer s3cret-token")),)
        targets = [
            WebhookTarget(f"release.notify[{index}]", SecretValue(url), headers, send_updates)
            for index, url in enumerate(urls or [server.url])
        ]
        notifier = Notifier(
            targets, release="r1", fleet="lab", report=events.append, clock=CLOCK, tls=tls
        )
        notifier.events = events
        return notifier

    return make


def event(name, text="t", host=None):
    return ReleaseEvent(NOW, name, text, host)


def took_s(action):
    began_s = time.monotonic()
    action()
    return time.monotonic() - began_s


# A busy machine may take this long for what waits for nothing, or for a second.
SOON_S = 30.0


def close(notifier):
    """
    Close it within its time, and return what it reported; nothing of it has a secret.
    """
    assert took_s(notifier.close) < notify.CLOSE_S + SOON_S
    texts = [reported.text for reported in notifier.events]
    assert not [text for text in texts for secret in SECRETS if secret in text]
    return texts


def states(server):
    return [document["state"] for _, document in server.messages]


def test_a_release_is_one_message_that_is_updated(make, server):
    """
    The same id in each update, a growing number, and the secrets in headers.
    """
    notifier = make()
    notifier(event("canary.measured", "60 of 100 requests"))
    wait_for(lambda: server.messages, "nothing was posted")
    notifier.ended(OUTCOME)
    assert close(notifier) == []
    (headers, first), (_, last) = server.messages
    assert first == {
        "id": "lab/r1",
        "number": 1,
        "at": "2026-01-01T00:00:00+00:00",
        "fleet": "lab",
        "release": "r1",
        "state": "running",
        "event": "canary.measured",
        "is_final": False,
        "text": "lab: r1: 60 of 100 requests",
    }
    assert last["id"] == first["id"]
    assert (last["number"], last["state"], last["is_final"]) == (2, "promoted", True)
    assert last["text"] == "lab: r1: promoted: 0 of 60 failed"
    assert headers["Authorization"] == "Bearer s3cret-token"
    assert headers["Content-Type"] == "application/json"


def test_the_newest_state_wins(make, server):
    """
    A slow webhook gets the last of many states, and those between are not sent.
    """
    may_answer = threading.Event()
    server.behaviour = lambda handler: (may_answer.wait(60), servers.accept(handler))
    notifier = make()
    for number in range(500):
        notifier(event("canary.measured", str(number)))
    wait_for(lambda: server.messages, "nothing was posted")
    notifier.ended(OUTCOME)
    may_answer.set()
    assert close(notifier) == []
    assert states(server)[-1] == "promoted"
    assert len(server.messages) <= 3


def test_only_the_end_is_sent_where_only_the_end_is_wanted(make, server):
    notifier = make(send_updates=False)
    notifier(event("canary.measured"))
    notifier.ended(OUTCOME)
    assert close(notifier) == []
    assert states(server) == ["promoted"]


def test_what_concerns_one_host_is_sent_only_if_it_failed(make, server):
    notifier = make()
    for one in (
        event("host.staged", "n1 staged", "n1"),
        event("hook.failed", "a hook"),
        event("notify.failed", "a webhook"),
        event("action.ended", "judge"),
    ):
        notifier(one)
    assert close(notifier) == []
    assert server.messages == []
    notifier = make()
    notifier(event("host.failed", "no answer\x1b[2J", "n1"))
    assert close(notifier) == []
    assert server.messages[0][1]["text"] == "lab: r1: n1: no answer\\x1b[2J"


BEHAVIOURS = {
    "never answers": (servers.never_answer, "it did not answer"),
    "drips": (servers.drip, "it did not answer"),
    "endless headers": (servers.endless_headers, "could not be sent"),
    "garbage": (servers.garbage, "could not be sent"),
    "redirects": (servers.redirect, "a redirect (status 307), which is not followed"),
    "closes": (servers.close_at_once, "could not be sent (RemoteProtocolError)"),
    "refuses": (lambda handler: servers.answer(handler, 403), "it answers with status 403"),
    "fails": (lambda handler: servers.answer(handler, 500), "it answers with status 500"),
}


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_no_webhook_is_waited_for(make, server, monkeypatch, kind):
    """
    Events take no time, the end waits at most CLOSE_S, and the failure is an event.
    """
    server.behaviour, why = BEHAVIOURS[kind]
    if why == "it did not answer":
        monkeypatch.setattr(notify, "REQUEST_S", 0.5)
    monkeypatch.setattr(notify, "CLOSE_S", 1.2)
    notifier = make()
    assert took_s(lambda: [notifier(event("canary.measured")) for _ in range(100)]) < SOON_S
    wait_for(lambda: notifier.events, "no failure is reported")
    notifier.ended(OUTCOME)
    reported = close(notifier)
    assert reported[-1].startswith("release.notify[0]: the last state was not delivered: ")
    assert why in reported[-1]
    assert {request["Host"] for request, _ in server.messages} <= {server.url.split("/")[2]}


def test_a_redirect_is_not_followed(make, server):
    server.behaviour = servers.redirect
    notifier = make()
    notifier.ended(OUTCOME)
    close(notifier)
    assert len(server.messages) == 1


def test_a_huge_answer_is_not_read(make, server):
    """
    The status is enough: the message was delivered.
    """
    server.behaviour = servers.answer_one_gigabyte
    notifier = make()
    notifier.ended(OUTCOME)
    assert close(notifier) == []
    assert len(server.messages) == 1
    assert server.sent < 64 << 20


def test_a_dripping_answer_keeps_no_thread(make, server, monkeypatch):
    """
    Each read is short: only a limit for the whole message ends it.
    """
    monkeypatch.setattr(notify, "REQUEST_S", 0.5)
    server.behaviour = servers.drip
    notifier = make()
    notifier(event("canary.measured"))
    wait_for(lambda: notifier.events, "it is still waited for")
    monkeypatch.setattr(notify, "REQUEST_S", 60.0)
    server.behaviour = servers.accept
    notifier.ended(OUTCOME)
    assert close(notifier) == ["release.notify[0]: it did not answer within 0.5 s"]
    assert states(server)[-1] == "promoted"
    wait_for(lambda: not threads_of_messages(), "a thread still reads")


def threads_of_messages():
    return [thread for thread in threading.enumerate() if thread.name == "release.notify[0] post"]


def test_an_error_that_passes_is_tried_again(make, server):
    """
    The last state, while the release waits for it.
    """
    answers = iter([503, 429])
    server.behaviour = lambda handler: servers.answer(handler, next(answers, 200))
    notifier = make()
    notifier.ended(OUTCOME)
    assert close(notifier) == []
    assert states(server) == ["promoted"] * 3


def test_the_last_state_does_not_wait_for_a_slow_one(make, server):
    """
    An older message that hangs is given up as soon as the last one is there.
    """
    server.behaviour = servers.never_answer
    notifier = make()
    notifier(event("canary.measured"))
    wait_for(lambda: server.messages, "nothing was posted")
    server.behaviour = servers.accept
    notifier.ended(OUTCOME)
    assert took_s(lambda: close(notifier)) < SOON_S
    assert states(server)[-1] == "promoted"


def test_one_bad_webhook_does_not_hold_up_another(make, server, monkeypatch):
    monkeypatch.setattr(notify, "CLOSE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing
        bad = f"https://127.0.0.1:{silent.getsockname()[1]}/s3cret-path"
        notifier = make(bad, server.url)
        notifier.ended(OUTCOME)
        wait_for(lambda: server.messages, "the good one got nothing")
        [reported] = close(notifier)
    assert reported.startswith("release.notify[0]: the last state was not delivered")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://127.0.0.1:1/s3cret-path", "no connection: Connection refused"),
        ("https://s3cret-path.invalid/", "its name does not resolve"),
        ("https://[::1/s3cret-path", "could not be sent (InvalidURL)"),
    ],
)
def test_an_error_has_no_url(make, monkeypatch, url, why):
    notifier = make(url)
    monkeypatch.setattr(notify, "CLOSE_S", 0.5)
    notifier.ended(OUTCOME)
    wait_for(lambda: notifier.events, "no failure is reported")
    assert why in close(notifier)[-1]


def test_an_unknown_certificate_is_refused(make, server, monkeypatch):
    """
    With the certificates of this machine, which do not have the server's.
    """
    notifier = make(tls=None)
    monkeypatch.setattr(notify, "CLOSE_S", 0.5)
    notifier.ended(OUTCOME)
    wait_for(lambda: notifier.events, "no failure is reported")
    assert "its certificate is not trusted" in close(notifier)[-1]
    assert server.messages == []


def test_certificates_of_the_environment_are_trusted(make, server, tmp_path, monkeypatch):
    """
    Negative control of the one above, and the way for a company's own authority.
    """
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.crt"))
    notifier = make(tls=None)
    notifier.ended(OUTCOME)
    assert close(notifier) == []


def test_no_log_has_the_url(make, server, caplog):
    """
    httpx logs every request with its URL, and `--debug` shows all logs.
    """
    caplog.set_level(logging.DEBUG)
    httpx.post(server.url, json={}, verify=server.trust)
    assert "s3cret-path" in caplog.text  # negative control
    caplog.clear()
    notifier = make()
    notifier.ended(OUTCOME)
    assert close(notifier) == []
    assert len(server.messages) == 2
    assert "s3cret" not in caplog.text


def test_without_webhooks_nothing_runs(make):
    notifier = Notifier((), release="r1", fleet="lab", report=print, clock=CLOCK)
    notifier(event("canary.measured"))
    notifier.ended(OUTCOME)
    notifier.close()


def fleet_of(webhook, **secrets):
    named = {name: Secret(env=f"SLIPWAY_{name.upper()}") for name in secrets}
    fleet = Fleet.model_construct(notify=(Webhook(**webhook),), secrets=named)
    return fleet, {f"SLIPWAY_{name.upper()}": value for name, value in secrets.items()}


def test_a_url_and_headers_may_be_secrets():
    fleet, env = fleet_of(
        {"webhook": "url", "headers": ({"name": "X-Key", "secret": "key"},), "send": "end"},
        url="https://hooks.example.com/T0/B1?sig=a%2Fb&v=1",
        key="Bearer s3cret-token",
    )
    [target] = resolve_webhooks(fleet, env)
    assert target.url.reveal() == "https://hooks.example.com/T0/B1?sig=a%2Fb&v=1"
    assert [(name, value.reveal()) for name, value in target.headers] == [
        ("X-Key", "Bearer s3cret-token")
    ]
    assert not target.send_updates
    assert "s3cret" not in repr(target)
    assert "hooks.example.com" not in repr(target)


@pytest.mark.parametrize(
    "secrets",
    [
        {"url": "http://hooks.example.com/s3cret", "key": "k"},
        {"url": "https://user:s3cret@hooks.example.com/x", "key": "k"},
        {"url": "https://hooks.example.com/s3cret path", "key": "k"},
        {"url": "file:///etc/s3cret", "key": "k"},
        {"url": "https://hooks.example.com/x", "key": "s3crét"},
        {"url": "https://hooks.example.com/x", "key": " s3cret"},
    ],
)
def test_a_secret_that_is_no_url_or_header_is_refused(secrets):
    """
    Before anything is touched, and without the value.
    """
    fleet, env = fleet_of(
        {"webhook": "url", "headers": ({"name": "X-Key", "secret": "key"},)}, **secrets
    )
    with pytest.raises(InventoryError) as refused:
        resolve_webhooks(fleet, env)
    assert "s3cr" not in str(refused.value)
