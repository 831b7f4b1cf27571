"""
The command line and the errors of certbot, the ACME client.  Pure.

Source: certbot 2.1, `certbot --help all`; RFC 8555, section 6.7, for the types of errors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates.acme import CertificateOrder
from deploy.foreign_text import quoted, visible
from deploy.inventory.schema import Tls

PROGRAM = "certbot"
_PROBLEM = re.compile(
    r'"type":\s*"urn:ietf:params:acme:error:(?P<kind>\w{1,40})",\s*'
    r'"detail":\s*(?P<detail>"(?:[^"\\]|\\.){0,2000}")'
)
_CHALLENGE = re.compile(
    r"(?m)^ +Domain: (?P<name>.*)\n +Type: +(?P<kind>.*)\n +Detail: (?P<detail>.*)$"
)
_INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "TZ", "REQUESTS_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
_WHY_MAX = 500


@dataclass(frozen=True, slots=True)
class CertbotProblem:
    """
    Why certbot got no certificate.

    Attributes:
        kind: Type of the ACME server's error, such as rateLimited; None: it sent none.
        fix: What the operator does next.
    """

    kind: str | None
    why: str
    fix: str

    @property
    def concerns_all(self) -> bool:
        """
        Whether a request for another certificate would meet the same problem now.
        """
        return self.kind in _OF_ACCOUNT

    @property
    def may_concern_all(self) -> bool:
        """
        Whether it is unknown if it would: a limit may be of one name or of the account, and
        certbot without an answer of the server may have met anything.
        """
        return self.kind is None or self.kind in _UNCLEAR


_OF_ACCOUNT = frozenset(
    {"externalAccountRequired", "userActionRequired", "accountDoesNotExist", "unsupportedContact",
     "invalidContact"}
)  # fmt: skip
_UNCLEAR = frozenset({"rateLimited", "serverInternal"})


def arguments(tls: Tls, folder: Path, order: CertificateOrder, hook: str) -> list[str]:
    """
    Return the arguments with which certbot obtains the certificate of *order*.

    It does so also where the present one is still valid.

    Nothing in it is secret: keys stay in files below *folder*.

    Args:
        folder: Directory of account, certificates and logs.
        hook: Command that certbot runs for each challenge, and waits for.
    """
    acme = tls.acme
    contact = ["--email", acme.email] if acme.email else ["--register-unsafely-without-email"]
    return [
        "certonly",
        "--non-interactive",
        "--agree-tos",
        *contact,
        "--no-eff-email",
        *("--server", acme.server),
        *("--config-dir", str(folder)),
        *("--work-dir", str(folder / "work")),
        *("--logs-dir", str(folder / "logs")),
        *("--max-log-backups", "10"),
        *("--key-type", "ecdsa", "--elliptic-curve", "secp256r1"),
        "--manual",
        *("--preferred-challenges", "dns" if acme.dns_hook else "http"),
        *("--manual-auth-hook", hook),
        # A certificate that is asked for here replaces the one before it, whatever its names are.
        *("--force-renewal", "--renew-with-new-domains"),
        *("--cert-name", order.label),
        *(word for name in order.names for word in ("--domain", name)),
    ]


def environment(env: Mapping[str, str], tls: Tls) -> dict[str, str]:
    """
    Return the environment of certbot: no secret of *env*, which is the operator's.
    """
    kept = {name: env[name] for name in _INHERITED if name in env}
    if tls.authority is not None:
        kept["REQUESTS_CA_BUNDLE"] = str(tls.authority)
    return kept | {"LC_ALL": "C.UTF-8"}


def problem_of(output: str, log: str, log_path: Path) -> CertbotProblem:
    """
    Return why certbot failed.

    Args:
        output: What it printed.
        log: Its own log of this run; it has the answers of the ACME server.
    """
    # Each order has one error for all of its challenges; those say more.
    reported = list(_CHALLENGE.finditer(output))
    # certbot repeats a request with another nonce by itself.
    problems = list(_PROBLEM.finditer(log))
    problems = [one for one in problems if one["kind"] != "badNonce"] or problems
    if reported:
        kind = reported[0]["kind"].strip()
        text = "; ".join(f"{one['name'].strip()}: {one['detail'].strip()}" for one in reported)
    elif problems:
        kind, text = problems[-1]["kind"], _text(problems[-1]["detail"])
    else:
        why = f"certbot says: {quoted(_last_words(output), limit=_WHY_MAX)}"
        return CertbotProblem(None, why, f"check that the server answers, and read {log_path}")
    why = f"the ACME server says {visible(kind)}: {quoted(text, limit=_WHY_MAX)}"
    return CertbotProblem(kind, why, _FIXES.get(kind, f"read {log_path}"))


_FIXES = {
    "rateLimited": "run it again after the time that the server names; try a test server first, "
    "such as https://acme-staging-v02.api.letsencrypt.org/directory",
    "connection": "let each name resolve to these hosts, and port 80 of the name reach "
    "service.tls.acme.http_port of each",
    "unauthorized": "let each name resolve to these hosts alone, and port 80 of the name reach "
    "service.tls.acme.http_port of each; with dns_hook, wait in it until the record is public",
    "dns": "create the DNS records of the names, pointing to the hosts; with dns_hook, check that "
    "it sets the record",
    "caa": "allow the ACME server in the CAA record of the domain",
    "rejectedIdentifier": "name only domains that this ACME server issues for in service.tls.names",
    "badNonce": "run it again",
    "externalAccountRequired": "register the account once with certbot register --eab-kid; "
    "docs/reference/tls.md has the command",
    "invalidContact": "correct service.tls.acme.email",
    "unsupportedContact": "correct service.tls.acme.email",
}


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        return literal


def _last_words(output: str) -> str:
    lines: Sequence[str] = [
        line.strip()
        for line in output.splitlines()
        if line.strip() and not line.startswith(("Ask for help", "Saving debug log", "- - -"))
    ]
    return " ".join(lines[-4:]) or "it printed nothing"
