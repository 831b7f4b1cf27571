"""
Obtains the certificates of a fleet with certbot, and gives them to its hosts.

certbot runs on this machine.  For each challenge of the ACME server it runs `acme_hook`, which
hands the challenge to this process: that lets HAProxy on the hosts answer it (HTTP-01), or has a
program of the operator's set a DNS record (DNS-01).
"""

import contextlib
import json
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from deploy.certificates import acme, certbot
from deploy.certificates.acme import CertificateOrder
from deploy.certificates.pair import CertificateProblem, Pair
from deploy.certificates.shown import ShownCertificate
from deploy.errors import CommandFailed, DeployError
from deploy.foreign_text import says
from deploy.host.protocol import ChallengeSet
from deploy.inventory.schema import Fleet
from deploy.private_files import private_directory
from deploy.release.hook_process import run_program
from deploy.release.hooks import INHERITED, check_program
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each
from deploy.wiring import acme_hook
from deploy.wiring.certificates import Renewal, renew
from deploy.wiring.hosts import Hosts

CERTBOT_S = 1200.0  # of one certificate
DNS_HOOK_S = 300.0  # of one record; the hook waits until it is public
_CHALLENGE_S = 20.0  # of one host
_LOG_MAX = 1 << 20  # bytes of certbot's log that are read, its last ones
_REQUEST_MAX = 64 << 10
_UNCLEAR_MAX = 2  # failures in a row that may concern all names


@dataclass(frozen=True, slots=True)
class Challenge:
    """
    A proof that the ACME server asks for.

    Attributes:
        domain: DNS name, without `*.`.
        validation: Text that HAProxy or the DNS record shows.
        token: Name of the text on the hosts; "": of a DNS record.
    """

    domain: str
    validation: str
    token: str


class Responder(Protocol):
    """
    Makes the answers to challenges public.
    """

    def show(self, challenge: Challenge) -> None:
        """
        Raises:
            DeployError: The ACME server would find no answer.
        """

    def hide(self, challenges: Sequence[Challenge]) -> None:
        """
        Remove what `show` left; failures are reported and raise nothing.
        """


class HostResponder:
    """
    HAProxy of the hosts, for HTTP-01.

    Attributes:
        errors: Hosts that do not answer the challenges.
    """

    def __init__(self, clients: Mapping[str, HostClient]) -> None:
        self._clients = clients
        self.errors: dict[str, DeployError] = {}

    def show(self, challenge: Challenge) -> None:
        self.errors |= self._set(ChallengeSet(show={challenge.token: challenge.validation}))
        # A host that is down is not where the names lead to, or the ACME server says so.
        if len(self.errors) == len(self._clients):
            raise next(iter(self.errors.values()))

    def hide(self, challenges: Sequence[Challenge]) -> None:
        # What is left there is public, and nobody asks for it again.
        self._set(ChallengeSet(hide=tuple(one.token for one in challenges)))

    def _set(self, request: ChallengeSet) -> dict[str, DeployError]:
        def one(host: str) -> None:
            self._clients[host].call(request, timeout_s=_CHALLENGE_S)

        hosts = [host for host in self._clients if host not in self.errors]
        return on_each(hosts, one, within_s=_CHALLENGE_S)


class HookResponder:
    """
    A program of the operator's that sets and removes DNS records, for DNS-01.

    Args:
        root: The repository, whose directory `hooks` has the program.
        env: The operator's environment; the program gets PATH, HOME, the user and TZ of it.
        say: Gets one line for each record that is left.

    Raises:
        PreconditionError: The program is missing or may not be run.
    """

    def __init__(
        self, program: str, root: Path, env: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        check_program(root, program, "service.tls.acme.dns_hook")
        self._program, self._root, self._say = program, root, say
        self._env = {name: env[name] for name in INHERITED if name in env}

    def show(self, challenge: Challenge) -> None:
        problem = self._run("present", challenge)
        if problem is not None:
            raise CommandFailed(
                f"{self._program} present: no DNS record for {challenge.domain}",
                why=problem,
                fix=f"run it by hand: CERTBOT_DOMAIN={challenge.domain} CERTBOT_VALIDATION=test "
                f"{self._program} present",
            )

    def hide(self, challenges: Sequence[Challenge]) -> None:
        for challenge in challenges:
            problem = self._run("cleanup", challenge)
            if problem is not None:
                record = f"_acme-challenge.{challenge.domain}"
                self._say(f"warning: {self._program} cleanup: {record} may be left: {problem}")

    def _run(self, verb: str, challenge: Challenge) -> str | None:
        result = run_program(
            [str(self._root / self._program), verb],
            stdin=b"",
            cwd=self._root,
            env=self._env
            | {
                "LC_ALL": "C.UTF-8",
                "CERTBOT_DOMAIN": challenge.domain,
                "CERTBOT_VALIDATION": challenge.validation,
            },
            timeout_s=DNS_HOOK_S,
            is_cancelled=lambda: False,
        )
        if result.problem is None:
            return None
        return f"{result.problem}; {says('it', result.output[-500:])}"


def renew_from_acme(
    on: Hosts,
    root: Path,
    env: Mapping[str, str],
    say: Callable[[str], None],
    *,
    is_forced: bool = False,
) -> Renewal:
    """
    Obtain what is missing or due, then give each selected host what it does not show yet.

    A host that an earlier call did not reach gets the certificate of then.  The ACME server is not
    asked for a certificate that no selected host could be given now.

    Args:
        root: The repository.
        env: The operator's environment.
        say: Gets lines about the progress.
        is_forced: Obtain new ones, also where the present ones last.

    Raises:
        InventoryError: A host has no DNS name.
    """
    fleet, now = on.fleet, datetime.now(UTC)
    wanted = acme.orders(fleet)
    states = on.seen()
    pairs: dict[str, Pair] = {}
    kept: dict[str, Pair] = {}
    replaced: dict[str, str] = {}
    errors = {name: state for name, state in states.items() if isinstance(state, DeployError)}
    failures = _Failures()
    for order in wanted:
        hosts = [host for host in order.hosts if host in states and host not in errors]
        if not hosts:
            continue  # each has its error already
        try:
            pair = acme.stored_pair(fleet, order, now)
            if is_forced or acme.needs_new(pair, order, now):
                failures.check()
                say(f"asks {fleet.service.tls.acme.server} for {', '.join(order.names)}")
                pair = obtain(on, order, root, env, say)
                failures.clear()
            assert pair is not None
            acme.check_issued(fleet, order)
        except DeployError as error:
            failures.add(error)
            errors |= dict.fromkeys(hosts, error)
            continue
        for host in hosts:
            state = states[host]
            assert not isinstance(state, DeployError)
            shown = state.certificate if state.is_certificate_kept else None
            is_current = _shows(shown, pair, is_exact=is_forced)
            (kept if is_current else pairs)[host] = pair
            if shown is not None:
                replaced[host] = shown.sha256
    given = renew(on, pairs, replaced)
    return Renewal(pairs, kept, {**errors, **given.errors})


class AcmeUnavailable(CommandFailed):
    """
    The ACME server, or certbot, gives no certificate for any name now.
    """


class AcmeUnclear(CommandFailed):
    """
    The ACME server, or certbot, gave no certificate for a name, and perhaps gives none for others.
    """


class _Failures:
    """
    Decides when the ACME server is asked no more: each request counts there.
    """

    def __init__(self) -> None:
        self._stop: DeployError | None = None
        self._unclear = 0  # in a row

    def check(self) -> None:
        """
        Raises:
            DeployError: Another request would fail too.
        """
        if self._stop is not None:
            raise self._stop

    def clear(self) -> None:
        self._unclear = 0

    def add(self, error: DeployError) -> None:
        if isinstance(error, AcmeUnclear):
            self._unclear += 1
        if isinstance(error, AcmeUnavailable) or self._unclear >= _UNCLEAR_MAX:
            self._stop = self._stop or error


def obtain(
    on: Hosts,
    order: CertificateOrder,
    root: Path,
    env: Mapping[str, str],
    say: Callable[[str], None],
) -> Pair:
    """
    Let certbot obtain the certificate of *order*, and return it.

    Raises:
        DeployError: There is none; the one before, if any, is still in its place.
    """
    fleet = on.fleet
    tls = fleet.service.tls
    program = shutil.which(certbot.PROGRAM, path=env.get("PATH"))
    if program is None:
        raise AcmeUnavailable(
            "certbot is not installed on this machine",
            why="service.tls.kind is acme, and no directory of PATH has it",
            fix="apt install certbot, or pip install certbot into an environment in PATH",
        )
    hook = tls.acme.dns_hook
    responder: Responder
    if hook is None:
        responder = HostResponder({host: on.clients[host] for host in order.hosts})
    else:
        responder = HookResponder(hook, root, env, say)
    folder = private_directory(acme.certbot_folder(fleet))
    before = _stored(fleet, order)
    log = private_directory(folder / "logs") / "letsencrypt.log"
    with challenge_server(responder) as server:
        result = run_program(
            [program, *certbot.arguments(tls, folder, order, server.hook)],
            stdin=b"",
            cwd=folder,
            env=certbot.environment(env, tls),
            timeout_s=CERTBOT_S,
            is_cancelled=lambda: server.error is not None,
        )
    what = f"{', '.join(order.names)}: no certificate from the ACME server"
    if server.error is not None:
        raise CommandFailed(
            what, why=f"{server.error.what}: {server.error.why}", fix=server.error.fix
        )
    if result.problem is not None:
        problem = certbot.problem_of(result.output, _end_of(log), log)
        unanswered = getattr(responder, "errors", {})
        down = f"; challenges are not answered by {', '.join(unanswered)}" if unanswered else ""
        kind = AcmeUnavailable if problem.concerns_all else CommandFailed
        kind = AcmeUnclear if problem.may_concern_all else kind
        raise kind(what, why=f"certbot: {result.problem}; {problem.why}{down}", fix=problem.fix)
    try:
        pair = acme.read_pair(acme.live_folder(fleet, order), datetime.now(UTC))
    except (OSError, CertificateProblem) as error:
        raise CommandFailed(what, why=f"certbot's files: {error}", fix=f"read {log}") from None
    if before is not None and before.leaf == pair.leaf:
        # Its files have whole paths: in another folder it begins a new lineage beside this one.
        raise CommandFailed(
            what,
            why=f"certbot has put it somewhere else than {acme.live_folder(fleet, order)}; was the "
            "folder moved or restored?",
            fix=f"rename {folder}, then inv certs.renew",
        )
    return pair


def _stored(fleet: Fleet, order: CertificateOrder) -> Pair | None:
    try:
        return acme.read_pair(acme.live_folder(fleet, order), datetime.now(UTC))
    except (OSError, CertificateProblem):
        return None


class ChallengeServer:
    """
    Takes challenges from `acme_hook` on a Unix socket that this user alone can reach.

    Attributes:
        hook: Command that certbot runs for each challenge.
        shown: Challenges that were made public, or may be.
        error: Why a challenge has no answer; certbot need not go on.
    """

    def __init__(self, responder: Responder, path: Path) -> None:
        words = [sys.executable, "-I", acme_hook.__file__, str(path)]
        self.hook = shlex.join(words)
        self.shown: list[Challenge] = []
        self.error: DeployError | None = None
        self._responder = responder
        self._unanswered: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """
        Wait for the challenge at work, and take no more.
        """
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self._unanswered:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, ValueError, KeyError):
                connection.settimeout(_CHALLENGE_S)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            document = json.loads(lines.readline(_REQUEST_MAX))
        if not isinstance(document, dict):
            raise ValueError(document)
        challenge = Challenge(*(str(document[name]) for name in acme_hook.FIELDS))
        self.shown.append(challenge)
        try:
            self._responder.show(challenge)
        except DeployError as error:
            # No answer: certbot would go on.  Its hook waits until certbot has been ended.
            self._unanswered.append(connection.dup())
            self.error = error
            return
        connection.sendall(acme_hook.DONE)


@contextmanager
def challenge_server(responder: Responder) -> Iterator[ChallengeServer]:
    """
    Yield a server of challenges; what it made public is hidden at the end, whatever happens.
    """
    with tempfile.TemporaryDirectory(prefix="slipway-acme-") as folder:
        path = Path(folder) / "hook.sock"
        try:
            server = ChallengeServer(responder, path)
        except OSError as error:  # the path of a socket has 107 bytes at most
            raise DeployError(
                "no socket for the challenges of the ACME server",
                why=f"{path}: {error}",
                fix="export TMPDIR=/tmp",
            ) from None
        try:
            yield server
        finally:
            server.close()
            if server.shown:
                responder.hide(server.shown)


def _shows(shown: ShownCertificate | None, pair: Pair, *, is_exact: bool) -> bool:
    """
    Return whether a host that shows *shown* needs no other: it is *pair*, or one as good.

    Args:
        is_exact: No other is as good.
    """
    if shown is None:
        return False
    if shown.sha256 == pair.leaf.fingerprint(hashes.SHA256()).hex():
        return True
    if is_exact:
        return False
    try:
        issuer = x509.Name.from_rfc4514_string(shown.issuer)
    except ValueError:
        return False
    valid = (shown.not_before, shown.not_after)
    return acme.is_as_good(shown.names, issuer, valid, pair.leaf)


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_MAX))
            return file.read(_LOG_MAX).decode(errors="replace")
    except OSError:
        return ""
