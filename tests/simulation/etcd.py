"""
An etcd of one member in a simulated world, behind its JSON gateway.

`deploy.release.etcd` runs as it is; faked are its HTTP client, its thread, its clock and TLS.  The
fake knows what a real etcd answers to the calls of slipway, and refuses every other one.
"""

import base64
import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx

from deploy.release import etcd as client_module
from tests.simulation.host import Violation
from tests.simulation.state import document_of, grain

NAME = "etcd"  # in a `Point`, where a host's name stands otherwise
ENDPOINT = "http://etcd:2379"
PREFIX = "slipway"
_VERBS = {
    "/v3/kv/txn": "txn",
    "/v3/lease/grant": "grant",
    "/v3/lease/keepalive": "keepalive",
    "/v3/lease/revoke": "revoke",
}
_NOT_FOUND = (404, {"code": 5, "message": "etcdserver: requested lease not found"})


class Etcd:
    """
    Attributes:
        revision: Of the last change.
        keys: (value, mod_revision, lease or 0) by name.
        down_until_s: Until then nothing reaches it, on the world's clock.
        late_until_s: Until then it answers only after `late_s`.
        winners: Who has ever won each epoch.
    """

    late_s = 10.0  # longer than a call waits

    def __init__(self, world):
        self.world = world
        self.revision = 1
        self.keys = {}
        self.leases = {}  # (time to live, end on the world's clock) by id
        self.down_until_s = self.late_until_s = 0.0
        self.winners = {}
        self._last_lease = 7000

    def ask(self, verb, document):
        """
        Return (status, answer) of one call.
        """
        self._expire()
        return getattr(self, f"_{verb}")(document)

    def number(self, operators):
        """
        Return what of it decides on the future.
        """
        self._expire()
        now_s = self.world.now_s
        return (
            max(0, grain(self.down_until_s - now_s)),
            max(0, grain(self.late_until_s - now_s)),
            [
                (name, self._content(name, value), lease and grain(self.leases[lease][1] - now_s))
                for name, (value, _, lease) in sorted(self.keys.items())
            ],
            [self._of_operator(operator) for operator in operators],
        )

    def state(self):
        """
        Return the text of the desired state; None before the first.
        """
        value, _, _ = self.keys.get(f"{PREFIX}/sim/state", (None, 0, 0))
        return None if value is None else json.loads(value)["text"]

    def _content(self, name, value):
        return document_of("desired.json", value)[1] if name.endswith("/state") else value

    def _of_operator(self, operator):
        store = operator.store
        if not hasattr(store, "_epoch_revision"):
            return None  # it has not begun
        _, revision, _ = self.keys.get(f"{PREFIX}/sim/epoch", (b"", 0, 0))
        return (
            store._is_on_hosts,
            store._epoch,
            store._epoch_revision == revision,
            store._lease != 0,
            store._lease in self.leases,
        )

    # -- calls

    def _txn(self, document):
        compares, steps = document.pop("compare"), document.pop("success")
        assert not document, document
        for compare in compares:
            assert (compare["target"], compare["result"]) == ("MOD", "EQUAL"), compare
            _, revision, _ = self.keys.get(_text(compare["key"]), (b"", 0, 0))
            if revision != int(compare["mod_revision"]):
                return 200, {"header": self._header()}
        puts = [step["request_put"] for step in steps if "request_put" in step]
        if any(int(put["lease"]) not in (0, *self.leases) for put in puts):
            return _NOT_FOUND
        self.revision += bool(puts)
        responses = []
        for step in steps:
            [(kind, request)] = step.items()
            responses.append(getattr(self, f"_{kind}")(request))
        return 200, {"header": self._header(), "succeeded": True, "responses": responses}

    def _request_put(self, put):
        name, value = _text(put["key"]), base64.b64decode(put["value"])
        self.keys[name] = (value, self.revision, int(put["lease"]))
        if name.endswith("/epoch"):
            won = json.loads(value)
            winners = self.winners.setdefault(won["epoch"], set())
            winners.add(won["winner"])
            if len(winners) > 1:
                raise Violation(f"epoch {won['epoch']} was won by {sorted(winners)}, in etcd")
        return {"response_put": {"header": self._header()}}

    def _request_range(self, request):
        name = _text(request["key"])
        if name not in self.keys:
            return {"response_range": {"header": self._header()}}
        value, revision, _ = self.keys[name]
        entry = {
            "key": request["key"],
            "value": base64.b64encode(value).decode(),
            "mod_revision": str(revision),
        }
        return {"response_range": {"header": self._header(), "kvs": [entry], "count": "1"}}

    def _grant(self, document):
        ttl_s = int(document["TTL"])
        self._last_lease += 1
        self.leases[self._last_lease] = (ttl_s, self.world.now_s + ttl_s)
        return 200, {"header": self._header(), "ID": str(self._last_lease), "TTL": str(ttl_s)}

    def _keepalive(self, document):
        lease = int(document["ID"])
        result = {"header": self._header(), "ID": str(lease)}
        if lease in self.leases:
            ttl_s, _ = self.leases[lease]
            self.leases[lease] = (ttl_s, self.world.now_s + ttl_s)
            result["TTL"] = str(ttl_s)
        return 200, {"result": result}

    def _revoke(self, document):
        lease = int(document["ID"])
        if lease not in self.leases:
            return _NOT_FOUND
        self._end(lease)
        return 200, {"header": self._header()}

    def _header(self):
        return {"revision": str(self.revision)}

    def _expire(self):
        for lease, (_, end_s) in list(self.leases.items()):
            if end_s <= self.world.now_s:
                self._end(lease)

    def _end(self, lease):
        del self.leases[lease]
        ended = [name for name, (_, _, own) in self.keys.items() if own == lease]
        self.revision += bool(ended)
        for name in ended:
            del self.keys[name]


class Client:
    """
    What `deploy.release.etcd` asks of `httpx.Client`, on the connection of the operator at work.
    """

    def __init__(self, operator):
        self._operator, self._world = operator, operator.world

    @contextmanager
    def stream(self, method, url, *, content, headers, timeout):
        path = url.removeprefix(ENDPOINT)
        assert method == "POST", method
        verb = _VERBS[path]
        operator = self._operator
        operator.calling.append((NAME, verb))
        told = None
        try:
            status, answer = self._ask(verb, json.loads(content), timeout)
            told = status, _told(answer)
        finally:
            operator.calling.pop()
            operator.trail.append((NAME, verb, told))
        yield SimpleNamespace(
            status_code=status, iter_raw=lambda: iter([json.dumps(answer).encode()])
        )

    def _ask(self, verb, document, timeout_s):
        from tests.simulation.world import LATENCY_S, Delivery

        world, operator, etcd = self._world, self._operator, self._world.etcd
        operator.alive()
        until_s = world.now_s + timeout_s
        delivery = Delivery()
        world.boundary("send", NAME, f"etcd.{verb}", operator=operator.name, delivery=delivery)
        operator.alive()
        world.pass_s(LATENCY_S)
        operator.alive()
        if etcd.down_until_s > world.now_s:
            raise httpx.ConnectError("Connection refused") from ConnectionRefusedError(111, "")
        if delivery.is_lost:
            raise httpx.ReadError("Connection reset by peer")
        status, answer = etcd.ask(verb, document)
        delivery = Delivery()
        world.boundary("answer", NAME, f"etcd.{verb}", operator=operator.name, delivery=delivery)
        operator.alive()
        took_s = etcd.late_s if etcd.late_until_s > world.now_s else LATENCY_S
        world.pass_s(min(took_s, max(0.0, until_s - world.now_s)))
        operator.alive()
        if took_s > timeout_s:
            raise httpx.ReadTimeout("timed out")
        if delivery.is_lost or etcd.down_until_s > world.now_s:
            raise httpx.ReadError("Connection reset by peer")
        return status, answer

    def close(self):
        pass


class _InlineThread:
    """
    A thread that has ended when `start` returns: a world has one thread, which forks.
    """

    def __init__(self, target, **_):
        self._target = target

    def start(self):
        self._target()

    def join(self, timeout=None):
        pass


def stand_ins(at_work):
    """
    Return what stands in `deploy.release.etcd` for the operating system, by name.

    Args:
        at_work: Returns the operator at work.
    """
    return client_module, {
        "threading": SimpleNamespace(Thread=_InlineThread, Lock=threading.Lock),
        "time": SimpleNamespace(monotonic=lambda: at_work().world.now_s),
        "ssl": SimpleNamespace(create_default_context=lambda **_: None),
        "httpx": SimpleNamespace(
            Client=lambda **_: Client(at_work()),
            HTTPError=httpx.HTTPError,
            InvalidURL=httpx.InvalidURL,
        ),
    }


def _told(answer):
    """
    Return what *answer* tells an operator, without numbers of revisions and leases.
    """
    result = answer.get("result", answer)
    values = [
        [base64.b64decode(entry["value"]) for entry in one["response_range"].get("kvs", ())]
        for one in answer.get("responses", ())
        if "response_range" in one
    ]
    return result.get("TTL"), answer.get("succeeded"), answer.get("code"), values


def _text(encoded):
    return base64.b64decode(encoded).decode()
