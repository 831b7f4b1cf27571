"""
HAProxy: listens on the public port and splits the traffic between the slots.
"""

import hashlib
import json

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, Ipv6, NotForeign, PortFree
from deploy.provision.resources import Absent, AnyResource, Directory, File
from deploy.provision.slot_resources import Socket
from deploy.provision.spec import HostSpec
from deploy.provision.unit_resources import EnabledService
from deploy.templating import render
from runtime import contract
from runtime.contract.error_document import error_document

CONFIG = "/etc/haproxy/haproxy.cfg"
HEADER = "Rendered by `inv provision` from templates/haproxy.cfg.j2"  # of every version
RESERVED_CONNECTIONS = 128  # of them for `service.monitoring_networks`
_NO_ANSWERS = b"# Answers to ACME challenges, by path; inv certs.renew adds them in memory.\n"
_NO_DIGEST = "0" * 16  # in the text that the digest is computed of
_MARGIN_S = 15.0  # added to the drain timeout, before the old worker is killed

# HAProxy's own answers, in the form of the runtime's: status, code, message, retry_safe.
_ERRORS = (
    (400, "bad_request", "the request is not valid HTTP", False),
    (403, "forbidden", "the request is not allowed", False),
    (404, "not_found", "no such route", False),
    (408, "request_timeout", "the request did not arrive in time", True),
    (413, "body_too_large", "the request is too large", False),
    (429, "too_many_requests", "this address has too many requests in flight", True),
    (500, "internal", "internal error of the proxy", True),
    (502, "bad_gateway", "the slot ended the connection without a complete answer", True),
    (503, "unavailable", "no slot takes requests now", True),
    (504, "deadline_exceeded", "the slot did not answer in time", True),
)
# Statuses with which a runtime refuses a request before its body has come, and retry_safe.
_REFUSALS = {
    400: False,
    401: False,
    404: False,
    405: False,
    408: True,
    413: False,
    415: False,
    422: False,
    429: True,
    431: False,
    500: True,
    503: True,
}
# Headers of a refusal, by the variable that holds each.
_KEPT_HEADERS = {
    "code": contract.UNREAD_HEADER,
    "request_id": contract.REQUEST_ID_HEADER,
    "version": contract.VERSION_HEADER,
    "slot": contract.SLOT_HEADER,
}
_BUSY = frozenset({429, 503})
_RETRY_AFTER = ("retry-after", "1")
_TLS = {
    "certificate": layout.CERTIFICATE,
    # Source: https://wiki.mozilla.org/Security/Server_Side_TLS, intermediate, version 5.7.
    "ciphers": ":".join(
        (
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            "ECDHE-RSA-CHACHA20-POLY1305",
        )
    ),
    "ciphersuites": ":".join(
        ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
    ),
    "streams": 100,
    "source_table": "requests_of_source",
    "total_table": "requests_in_flight",
}
CHALLENGE_CONNECTIONS = 64  # at once, beside those of the public port
_WORDS_OF_LINE = 32  # of a fleet's list; HAProxy reads 64 words of a line, and refuses a longer one
_NOBODY = "255.255.255.255"  # never the source of a connection


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    own = NotForeign(path=CONFIG, header=HEADER)
    ipv6 = [Ipv6()] if spec.service.ipv6 else []
    return [PortFree(port=spec.service.port), own, *ipv6]


def install(spec: HostSpec) -> list[AnyResource]:
    # /run is empty after a boot: tmpfiles.d makes the directory again before HAProxy starts.
    folders = {slot: f"{layout.RUN}/{slot}" for slot in layout.SLOTS}
    tmpfiles = render("slipway.tmpfiles", run=layout.RUN, slots=list(folders.values())).encode()
    return [
        File(path=layout.TMPFILES, content=tmpfiles),
        Directory(path=layout.RUN),
        *(Directory(path=path, mode="0711") for path in folders.values()),
        # A slot that was started before slots had users of their own still listens on its own
        # socket.  HAProxy reaches it by its group before the reload, and as its owner after that.
        *(
            Socket(path=layout.runtime_socket(slot), owner=layout.HAPROXY_USER)
            for slot in layout.SLOTS
        ),
    ]


def configure(spec: HostSpec) -> list[AnyResource]:
    answers = File(path=layout.ACME_MAP, content=_NO_ANSWERS)  # HAProxy reads it before it starts
    return [
        *([answers] if spec.service.tls.http_challenge_port else []),
        File(path=CONFIG, content=config(spec).encode(), check="haproxy -q -c -f {}"),
    ]


def activate(spec: HostSpec) -> list[AnyResource]:
    service = EnabledService(
        unit=layout.HAPROXY_UNIT,
        socket=layout.HAPROXY_SOCKET,
        description=f"slipway {_digest(spec)}",
    )
    tls = spec.service.tls
    # The key, and one of a replacement that was cut off, leave once no configuration names it.
    unused = [
        *([] if tls.is_on else [layout.CERTIFICATES]),
        *([] if tls.http_challenge_port else [layout.ACME_MAP]),
    ]
    return [service, *(Absent(path=path) for path in unused)]


def config(spec: HostSpec) -> str:
    """
    Return the text of /etc/haproxy/haproxy.cfg, with its own digest as description.
    """
    return _render(spec, _digest(spec))


def _digest(spec: HostSpec) -> str:
    return hashlib.sha256(_render(spec, _NO_DIGEST).encode()).hexdigest()[:16]


def _render(spec: HostSpec, digest: str) -> str:
    challenge_port = spec.service.tls.http_challenge_port
    return render(
        "haproxy.cfg",
        config_digest=digest,
        group=layout.HAPROXY_USER,
        maxconn=spec.service.max_connections + (CHALLENGE_CONNECTIONS if challenge_port else 0),
        stats_socket=layout.HAPROXY_SOCKET,
        state_file=layout.HAPROXY_STATE,
        hard_stop_after_s=round(spec.drain_timeout_s + _MARGIN_S),
        errors=_errors(),
        refusals=_refusals(),
        kept_headers=_KEPT_HEADERS,
        port=spec.service.port,
        ipv6=spec.service.ipv6,
        tls=_TLS if spec.service.tls.is_on else None,
        challenges=_challenges(challenge_port) if challenge_port else None,
        monitoring_networks=spec.service.monitoring_networks or (_NOBODY,),
        trusted_proxies=spec.service.trusted_proxies or (_NOBODY,),
        connections_per_source=spec.service.connections_per_source,
        public_connections=spec.service.max_connections - RESERVED_CONNECTIONS,
        crowded_connections=spec.service.max_connections // 2,
        crowded_per_source=max(1, spec.service.connections_per_source // 4),
        public_routes=contract.PUBLIC_ROUTES,
        model_path=contract.MODEL_PATH,
        cors_origins=spec.service.cors_origins,
        words_of_line=_WORDS_OF_LINE,
        monitoring_routes=contract.MONITORING_ROUTES,
        backend=layout.BACKEND,
        readyz=contract.READYZ,
        timely_backend=layout.TIMELY_BACKEND,
        door={"backend": layout.DOOR_BACKEND, "server": layout.DOOR_SERVER},
        pairs=[layout.SLOTS, layout.SLOTS[::-1]],
        slots=[{"name": s, "socket": layout.runtime_socket(s)} for s in layout.SLOTS],
    )


def _challenges(port: int) -> dict[str, object]:
    return {"port": port, "connections": CHALLENGE_CONNECTIONS, "map": layout.ACME_MAP}


def _errors() -> list[dict[str, object]]:
    answers = []
    for status, code, message, retry_safe in _ERRORS:
        document = error_document(
            status, code, message, request_id="%[uuid()]", retry_safe=retry_safe
        )
        headers = [_RETRY_AFTER] if status in _BUSY else []
        answers.append({"status": status, "document": json.dumps(document), "headers": headers})
    return answers


def _refusals() -> list[dict[str, object]]:
    """
    Return the answers in place of a slot's, with its code, ids and labels.
    """
    answers = []
    for status, retry_safe in _REFUSALS.items():
        document = error_document(
            status,
            "%[var(txn.code)]",
            "refused before the whole request was received",
            request_id="%[var(txn.request_id)]",
            retry_safe=retry_safe,
        )
        headers = [
            (header, f"%[var(txn.{variable})]")
            for variable, header in _KEPT_HEADERS.items()
            if header != contract.UNREAD_HEADER
        ]
        headers += [_RETRY_AFTER] if status in _BUSY else []
        answers.append({"status": status, "document": json.dumps(document), "headers": headers})
    return answers
