"""
The command line: parse, call `deploy`, print.  `inv --list` is its table of contents.

Results go to stdout, progress to stderr.  Every error prints what failed, why and what to do, and
exits with the code of its class in `deploy/errors.py` (listed in docs/reference/cli.md).
"""

import os
import sys
from pathlib import Path
from typing import Any

from invoke import Collection

from deploy.cli.arguments import (
    canary_share,
    fleet_name,
    output_file,
    path_from_caller,
    release_name,
    whole_number,
)
from deploy.cli.command import command
from deploy.cli.confirm import confirm, confirm_takeover
from deploy.cli.progress import waiting
from deploy.cli.sudo_password import with_sudo_password
from deploy.cli.terminal import finish, print_progress, print_text
from deploy.errors import UsageError

ROOT = Path(__file__).parent

_HOSTS = (
    "Fleet to work on: NAME of inventories/NAME.yml, or the path of a .yml file "
    "(default: `fleet` in invoke.yaml)."
)
_LIMIT = "Only these hosts: names, globs or @groups, comma-separated (default: all)."
_CANARY = (
    "Share of traffic that the new release gets first, in percent, 1 to 50 "
    "(default: release.canary.share_pct of the fleet)."
)
_STEAL = "Take over from an operator who is at work; asks first, and names the owner."
_JSON = "Print one JSON document on stdout; progress stays on stderr."
_DIFFERS = 2  # exit code of a check that finds a difference
_YES = "Do not ask before hosts are changed; for CI."


@command(flags={"hosts": _HOSTS, "check": "Show what would change, and change nothing.",
                "deep": "Compare every file of the Python environment by its hash; takes longer.",
                "waves": "Reboot hosts that need it, so many at once: numbers of hosts or "
                "percentages of the fleet, such as 1,25%; the last one holds for later waves.",
                "window": "Begin waves in these hours only, such as 02:00-05:00 (local time of "
                "this machine) or '02:00-05:00 Europe/Berlin'; needs --waves.",
                "interrupt": "Reboot also a host that still gets requests when its drain ends: "
                "its users lose service meanwhile; needs --waves.",
                "limit": _LIMIT, "json": _JSON, "yes": _YES})  # fmt: skip
def provision(c, hosts=None, check=False, deep=False, waves="", window="", interrupt=False,
              limit=None, json=False, yes=False):  # fmt: skip
    """
    Bring hosts to the pinned state.

    Changes packages, users, directories, HAProxy, the venv and the units of the fleet's hosts.
    Never changes which release serves: that is `inv release`.  A second run changes nothing.
    A host that needs a reboot is reported; --waves reboots it, and the same command goes on where
    it was stopped.

    Exits 2 where --check finds a difference.

        inv provision --hosts lab --check
    """
    from deploy.cli import events, report
    from deploy.provision import provision as run
    from deploy.wiring import certificates, checkout

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    policy = None
    if waves or window or interrupt:
        from deploy.wiring.reboots import reboot_policy

        policy = reboot_policy(fleet, waves, window, interrupts=interrupt, check=check)
    names = [host.name for host in fleet.hosts]
    if fleet.service.api_tokens and not fleet.service.tls.is_on:
        print_progress("warning: bearer tokens travel in the clear: service.tls.kind is plain")
    if lacking := certificates.without_certificate(fleet):
        what = "this machine has no certificate of the ACME server yet"
        print_progress(f"warning: {', '.join(lacking)}: {what}: inv certs.renew obtains it")
    if not check:
        also = f", and reboot them in waves of {', '.join(policy.waves)}" if policy else ""
        confirm(f"provision {', '.join(names)}{also}?", yes=yes)
    with events.provisioning(names, as_json=json) as progress:
        result = run(fleet, check=check, deep=deep, progress=progress, env=dict(os.environ))
        progress.print_remaining_failures(result)
    error = result.error
    if result.changes and not check:
        unsynced = _sync_keys_of(fleet)
        if error is None and unsynced is not None:
            finish(result.as_json(), report.provision_text(result), unsynced, as_json=json)
    if policy and error is None:
        result, stopped = _reboot(fleet, policy, result, as_json=json)
        finish(result.as_json(), report.provision_text(result), stopped, as_json=json)
        return
    finish(result.as_json(), report.provision_text(result), error, as_json=json, is_printed=True)
    if check and result.changes:
        sys.exit(_DIFFERS)


def _reboot(fleet, policy, result, *, as_json):
    """
    Reboot the hosts of *fleet* that need it; return the report with that, and why it stopped.
    """
    from deploy.cli import events
    from deploy.wiring.reboots import reboot_in_waves, with_reboots

    names = [host.name for host in fleet.hosts]
    with events.provisioning(names, as_json=as_json) as progress:
        outcome = reboot_in_waves(fleet, policy, progress)
    return with_reboots(result, outcome), outcome.error


def _sync_keys_of(fleet):
    """
    Bring the API keys to hosts that were installed anew; return the error where that failed.
    """
    from deploy.api_keys.commands import sync_keys_if_any
    from deploy.cli.key_report import not_compared
    from deploy.errors import DeployError
    from deploy.wiring.hosts import connect

    try:
        with waiting("the API keys of the hosts"), connect(fleet) as on:
            spread = sync_keys_if_any(on.clients)
    except DeployError as error:
        return not_compared(error)
    if spread is None:
        return None
    if spread.changed:
        print_progress(f"API keys: brought to {', '.join(spread.changed)}")
    return spread.error


@command(flags={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
                "fingerprint": "Record only keys with these SHA256:... fingerprints, "
                "comma-separated; for CI, with --yes.",
                "yes": "Do not ask; needs --fingerprint."})  # fmt: skip
def trust(c, hosts=None, limit=None, fingerprint="", yes=False, json=False):
    """
    Show host keys and record them in known_hosts.

    Asks each server on the way to the hosts, jump hosts included, for its keys; logs in to jump
    hosts only.  A host with a recorded key is left as it is; one that shows another key is refused.

        inv trust --hosts gpu
    """
    from deploy.cli.arguments import fingerprints
    from deploy.cli.trust_report import keys_text, trust_text
    from deploy.wiring import checkout
    from deploy.wiring.trust import trust as run

    expected = fingerprints(fingerprint, yes=yes)

    def ask(shown):
        print_progress(keys_text(shown))
        confirm("record these keys, after comparing them with the hosts' consoles?", yes=yes)

    fleet = checkout.fleet(fleet_name(hosts, c.get("fleet")), limit)
    result = run(fleet, fingerprints=expected, ask=ask)
    finish(result.as_json(), trust_text(result), result.error, as_json=json)


@command(flags={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
                "junit": "JUnit XML file to write (default reports/verify.xml)."})  # fmt: skip
def verify(c, hosts=None, limit=None, junit="", json=False):
    """
    Assert over SSH that hosts are as provisioned.

    Runs tests/testinfra on every host.  Reads only; changes nothing.

        inv verify --hosts lab
    """
    from deploy.cli import report
    from deploy.verify import verify as run
    from deploy.wiring import checkout

    target = output_file("junit", junit or str(ROOT / "reports" / "verify.xml"))
    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    with waiting("the assertions") as progress:
        result = run(fleet, junit=target, progress=progress)
    finish(result.as_json(), report.verify_text(result), result.error, as_json=json)


@command(flags={"model": "Directory with config.json, tokenizer.json and safetensors.",
                "version": "Name of the release, such as v1.3.0.",
                "hosts": _HOSTS, "json": _JSON})  # fmt: skip
def bundle(c, model, version, hosts=None, json=False):
    """
    Build and sign a bundle.

    Writes into .slipway/; touches no host.  The same inputs give the same bytes.

        inv bundle --model .slipway/models/good-v1 --version v1.0.0
    """
    from deploy.cli import report
    from deploy.wiring import bundles, checkout

    fleet = checkout.fleet(fleet_name(hosts, c.get("fleet")))
    with waiting(f"bundle {version}") as progress:
        built = bundles.make_bundle(fleet, path_from_caller(model), version, progress)
    finish(report.bundle_json(built, version), f"{version}  {built.digest}", None, as_json=json)


@command(flags={"canary": _CANARY,
                "version": "Bundle to release: version or digest (default: the newest).",
                "allow-older": "The plan of a release with that flag; it has a digest of its own.",
                "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON})  # fmt: skip
def plan(c, canary="", version=None, allow_older=False, hosts=None, limit=None, json=False):
    """
    Show what a release would do, host by host.

    Reads hosts; changes nothing.  `inv release --plan DIGEST` does exactly this plan or refuses.

        inv plan --canary 10
    """
    from deploy.cli import report
    from deploy.wiring import bundles, checkout, releases
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    share_pct = canary_share(canary, fleet)
    bundle = bundles.checked_bundle(fleet, release_name("version", version))
    with waiting("the state of the hosts"), connect(fleet) as on:
        result = releases.make_plan(on, bundle, share_pct, allow_older=allow_older)
    finish(report.plan_json(result), report.plan_text(result), None, as_json=json)


@command(flags={"canary": _CANARY,
                "version": "Bundle to release: version or digest (default: the newest).",
                "plan": "Digest that `inv plan` printed; any other plan is refused.",
                "resume": "Go on with the release that is open, as `inv resume` does.",
                "allow-older": "Accept a bundle that is older than the newest good release; the "
                "hosts' journals record it.",
                "steal": _STEAL, "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
                "yes": _YES})  # fmt: skip
def release(c, canary="", version=None, plan=None, resume=False, allow_older=False, steal=False,
            hosts=None, limit=None, json=False, yes=False):  # fmt: skip
    """
    Release a bundle, wave by wave, or go back.

    Changes the slots of the fleet's hosts and the shares of their traffic.  Never changes drivers,
    kernel or packages: that is `inv provision`.  Exits 8 when the canary is refused: the old
    release then serves everywhere.  If this machine dies, the hosts go back by themselves.

        inv release --canary 10
    """
    from deploy.cli import events, report
    from deploy.wiring import bundles, checkout, releases
    from deploy.wiring.hosts import connect

    beside = {"canary": canary, "version": version, "plan": plan, "allow-older": allow_older}
    if resume and (flags := [f"--{flag}" for flag, value in beside.items() if value]):
        raise UsageError(f"{', '.join(flags)}: not with --resume",
                         why="the open release goes on with its own bundle, share and plan",
                         fix="inv release --resume, or inv abort first")  # fmt: skip
    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    if resume:
        find = releases.last_release
        _steer(fleet, "resume", releases.resume, find=find, steal=steal, json=json, yes=yes)
        return
    share_pct = canary_share(canary, fleet)
    bundle = bundles.checked_bundle(fleet, release_name("version", version))
    with connect(fleet) as on:
        with waiting("the state of the hosts"):
            todo = releases.make_plan(on, bundle, share_pct, allow_older=allow_older)
        releases.check_digest(todo, plan)
        print_progress(report.plan_text(todo))
        if not todo.is_noop:
            confirm_takeover(on.holders() if steal else (), "go?", yes=yes)
        names = [host.host for host in todo.hosts]
        with events.releasing(fleet, names, as_json=json) as progress:
            outcome = releases.run_release(on, bundle, todo, progress, steal=steal)
    text = report.outcome_text(outcome)
    finish(outcome.as_json(), text, outcome.error, as_json=json, printed=progress.printed)


@command(flags={"to": "Release id or version to go back to (default: the one before).",
                "steal": _STEAL, "hosts": _HOSTS, "limit": _LIMIT, "json": _JSON,
                "yes": _YES})  # fmt: skip
def rollback(c, to=None, steal=False, hosts=None, limit=None, json=False, yes=False):
    """
    Go back to the last release recorded as good.

    No build, no download, no canary.  Where a release stopped in the middle, drops it; where all
    is settled, goes to the release before.  Goes on without hosts that do not answer within 2 s.

        inv rollback
    """
    from deploy.cli import events, report
    from deploy.wiring import checkout, releases
    from deploy.wiring.hosts import connect

    to = release_name("to", to)
    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    with connect(fleet) as on:
        with waiting("the state of the hosts"):
            todo = releases.make_rollback(on, to)
        names = [host.host for host in todo.hosts]
        print_progress(f"{todo.reason}: {', '.join(names) or 'nothing to do'}")
        if not todo.is_noop:
            confirm_takeover(on.holders() if steal else (), "go?", yes=yes)
        with events.releasing(fleet, names, as_json=json) as progress:
            outcome = releases.run_rollback(on, todo, progress, steal=steal)
    text = report.outcome_text(outcome)
    finish(outcome.as_json(), text, outcome.error, as_json=json, printed=progress.printed)


def _steer(fleet, does, steer, *, find, steal, json, yes):
    """
    Go on with the release of *fleet* that *find* returns: *does* names how, *steer* does it.
    """
    from deploy.cli import events, report
    from deploy.wiring.hosts import connect

    with connect(fleet) as on:
        with waiting("the state of the hosts"):
            release = find(on).release
        confirm_takeover(on.holders() if steal else (), f"{does} {release}?", yes=yes)
        names = [host.name for host in fleet.hosts]
        with events.releasing(fleet, names, as_json=json) as progress:
            outcome = steer(on, progress, steal=steal)
    text = report.outcome_text(outcome)
    finish(outcome.as_json(), text, outcome.error, as_json=json, printed=progress.printed)


_STEERING = {"steal": _STEAL, "hosts": _HOSTS, "json": _JSON, "yes": _YES}


@command(flags=_STEERING)
def abort(c, steal=False, hosts=None, json=False, yes=False):
    """
    Take the open release back, from any machine that has the key.

    Changes the shares of the traffic and stops the new slots.  --steal takes over from the
    operator who runs it: that command ends at its next step.

        inv abort --steal
    """
    from functools import partial

    from deploy.wiring import checkout, releases

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    find = partial(releases.open_release, is_way_back=True)
    _steer(fleet, "abort", releases.abort, find=find, steal=steal, json=json, yes=yes)


@command(flags=_STEERING)
def pause(c, steal=False, hosts=None, json=False, yes=False):
    """
    Hold the open release: the old one gets all the traffic, the new slots stay warm.

    Exits 0; `inv resume`, `inv promote` and `inv abort` go on.

        inv pause --steal
    """
    from functools import partial

    from deploy.wiring import checkout, releases

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    find = partial(releases.open_release, is_way_back=True)
    _steer(fleet, "pause", releases.pause, find=find, steal=steal, json=json, yes=yes)


@command(flags=_STEERING)
def resume(c, steal=False, hosts=None, json=False, yes=False):
    """
    Go on with the open release where it stopped, with the plan and the limits that it began with.

    Also brings hosts that the last release went on without.

        inv resume
    """
    from deploy.wiring import checkout, releases

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    find = releases.last_release
    _steer(fleet, "resume", releases.resume, find=find, steal=steal, json=json, yes=yes)


@command(flags={"full": "Let all waves pass, and measure nothing more.", **_STEERING})
def promote(c, full=False, steal=False, hosts=None, json=False, yes=False):
    """
    Let the wave that is measured pass, by your word, and go on with the open release.

    The journals of the hosts record who let it pass.

        inv promote
    """
    from functools import partial

    from deploy.wiring import checkout, releases

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    steer = partial(releases.promote, is_full=full)
    find = releases.open_release
    _steer(fleet, "promote", steer, find=find, steal=steal, json=json, yes=yes)


@command(flags={"hosts": _HOSTS, "limit": _LIMIT,
                "watch": "Show again every second until interrupted, with --json as lines.",
                "json": _JSON})  # fmt: skip
def status(c, hosts=None, limit=None, json=False, watch=False):
    """
    Show hosts, slots, versions, shares, health and the release in progress.

    Reads hosts; changes nothing.  Exits 26 where hosts are not as they should be or do not answer,
    unless a release in progress explains it.

        inv status --json
    """
    import time
    from datetime import UTC, datetime

    from deploy.cli import report, tables
    from deploy.cli.watch import watch as show_again
    from deploy.release.findings import fleet_error
    from deploy.wiring import checkout, fleet_status
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    with connect(fleet) as on:

        def read() -> tuple[dict[str, Any], Any, Any]:
            states, findings = fleet_status.read(on)
            document = report.status_json(fleet.name, states, findings)
            now = datetime.now(UTC)
            table = "" if json else tables.status_table(fleet.name, states, findings, now)
            return document, table, fleet_error(findings)

        if watch:
            show_again(lambda: read()[:2], as_json=json, sleep=time.sleep)
        with waiting("the state of the hosts"):
            document, table, error = read()
    finish(document, table, error, as_json=json)


@command(flags={"hosts": _HOSTS, "limit": _LIMIT,
                "verify": "Exit 27 where the journal of a host was changed or cut.",
                "json": _JSON})  # fmt: skip
def history(c, hosts=None, limit=None, verify=False, json=False):
    """
    Show past releases and rollbacks, as most hosts have them.

    Reads the journals of the hosts; changes nothing there.  Keeps the last line that it saw of
    each in .slipway/history, to compare the next time.

        inv history --verify
    """
    from deploy.cli import report, tables
    from deploy.wiring import checkout
    from deploy.wiring import history as journals
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    heads = journals.heads_file(fleet.name)
    with waiting("the journals of the hosts"), connect(fleet) as on:
        result, errors = journals.read_history(on.selected, heads)
    error = journals.audit_error(result, heads) if verify else None
    unread = next(iter(errors.values()), None) if verify or not result.heads else None
    document = report.history_json(result, errors)
    table = "" if json else tables.history_table(result, errors)
    unkept = journals.keep_heads(result, heads)
    finish(document, table, error or unread or unkept, as_json=json)


@command(flags={"hosts": _HOSTS, "yes": _YES})
def certs_create(c, hosts=None, yes=False):
    """
    Make the fleet's own certificate authority.

    Writes slipway-ca.pem and slipway-ca.key into service.tls.authority of the fleet, for you alone;
    touches no host.  Clients trust slipway-ca.pem.  Refuses a directory that is in use.

        inv certs.create --hosts gpu
    """
    from deploy.wiring import certificates, checkout

    fleet = checkout.fleet(fleet_name(hosts, c.get("fleet")))
    directory = certificates.authority_directory(fleet)
    confirm(f"make a certificate authority in {directory}?", yes=yes)
    print_text(str(certificates.create(fleet)))


@command(flags={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON, "yes": _YES,
                "force": "With kind acme: obtain a new certificate, also where the present one "
                         "lasts for more than 30 days."})  # fmt: skip
def certs_renew(c, hosts=None, limit=None, force=False, json=False, yes=False):
    """
    Replace the certificates of hosts without losing a request.

    With service.tls.kind internal, issues new ones; with files, reads the files again; with acme,
    obtains those that are missing or end within 30 days, and does nothing where there are none.
    Changes no weight and no release; works during one.  Each host proves that new connections show
    the new certificate, or serves the old one.

        inv certs.renew --hosts gpu
    """
    from deploy.cli import certificate_report
    from deploy.wiring import acme, certificates, checkout
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    names = [host.name for host in fleet.hosts]
    confirm(f"replace the certificates of {', '.join(names)}?", yes=yes)
    if fleet.service.tls.kind == "acme":
        with waiting("the certificates"), connect(fleet) as on:
            result = acme.renew_from_acme(
                on, checkout.ROOT, dict(os.environ), print_progress, is_forced=force
            )
    else:
        pairs = certificates.new_pairs(fleet)
        with waiting("the certificates"), connect(fleet) as on:
            result = certificates.renew(on, pairs)
    document = certificate_report.renewal_json(fleet.name, result)
    table = "" if json else certificate_report.renewal_table(result)
    finish(document, table, result.error, as_json=json)


@command(flags={"hosts": _HOSTS, "limit": _LIMIT, "json": _JSON})
def certs_show(c, hosts=None, limit=None, json=False):
    """
    Show the certificate of each host's public port.

    Reads hosts; changes nothing.  Exits 26 where one has expired or is missing, where a restart
    would show another one, or where the port is plain HTTP and the fleet file has TLS.

        inv certs.show --hosts gpu
    """
    from datetime import UTC, datetime

    from deploy.cli import certificate_report
    from deploy.release.findings import certificate_findings, fleet_error
    from deploy.wiring import checkout
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet")), limit))
    with waiting("the certificates of the hosts"), connect(fleet) as on:
        states = on.seen()
    now = datetime.now(UTC)
    wants_tls = fleet.service.tls.is_on
    error = fleet_error(certificate_findings(states, now, wants_tls=wants_tls))
    document = certificate_report.certificates_json(fleet.name, states, now)
    table = "" if json else certificate_report.certificates_table(states, now, wants_tls)
    finish(document, table, error, as_json=json)


@command(flags={"name": "Name of the key, for lists, metrics and logs.",
                "expires": "How long it is valid, such as 30d (default: for ever).",
                "models": "Models that it may use, comma-separated (default: all).",
                "rpm": "Most requests a minute, of each slot (default: no limit).",
                "tpm": "Most tokens a minute, of each slot (default: no limit).",
                "weight": "Share of the engine beside other keys, 1 to 100 (default 1).",
                "priority": "Keys with a lower number are computed first, 0 to 9 (default 5).",
                "concurrency": "Most of its answers that a slot computes at once (default: all).",
                "hosts": _HOSTS, "json": _JSON, "yes": _YES})  # fmt: skip
def keys_add(c, name, expires="", models="", rpm="", tpm="", weight="1", priority="5",
             concurrency="", hosts=None, json=False, yes=False):  # fmt: skip
    """
    Add an API key on all hosts; print its token, once.

    In force within 5 s; restarts nothing, and needs no lease.  Once there is a key, requests
    without one are refused.  Exits 26 where a host did not get it.

        inv keys.add --name web --expires 90d --rpm 600
    """
    from deploy.api_keys.commands import add_key
    from deploy.cli.key_flags import key_name, key_options

    options = key_options(
        expires=expires,
        models=models,
        rpm=rpm,
        tpm=tpm,
        weight=weight,
        priority=priority,
        concurrency=concurrency,
    )
    name = key_name(name)
    _issue(c, f"add the API key {name}", hosts, json, yes,
           lambda clients, now: add_key(clients, name, options, now))  # fmt: skip


@command(positional=("name",),
         flags={"name": "Name of the key.",
                "overlap": "How long earlier tokens stay valid, such as 1h (default 0s).",
                "expires": "How long the new token is valid, such as 30d (default: for ever).",
                "hosts": _HOSTS, "json": _JSON, "yes": _YES})  # fmt: skip
def keys_rotate(c, name, overlap="0s", expires="", hosts=None, json=False, yes=False):
    """
    Give an API key another token; print it, once.

    Its limits stay.  Exits 26 where a host did not get it.

        inv keys.rotate web --overlap 1h
    """
    from deploy.api_keys.commands import rotate_key
    from deploy.cli.key_flags import duration, key_name

    name, overlap_s = key_name(name), duration("overlap", overlap)
    expires_s = duration("expires", expires, least_s=1) if expires else None
    _issue(c, f"rotate the API key {name}", hosts, json, yes,
           lambda clients, now: rotate_key(clients, name, overlap_s, expires_s, now))  # fmt: skip


@command(positional=("name",), flags={"name": "Name of the key.", "hosts": _HOSTS,
                                      "json": _JSON, "yes": _YES})  # fmt: skip
def keys_revoke(c, name, hosts=None, json=False, yes=False):
    """
    Revoke an API key on all hosts, for ever.

    Refused within 5 s; requests in flight end.  Exits 26 where a host did not get it: the key
    still works there.

        inv keys.revoke web
    """
    from deploy.api_keys.commands import revoke_key
    from deploy.cli.key_flags import key_name

    name = key_name(name)
    _spread(c, f"revoke the API key {name}", hosts, json, yes,
            lambda clients, now: revoke_key(clients, name, now))  # fmt: skip


@command(flags={"hosts": _HOSTS, "json": _JSON, "yes": _YES})
def keys_sync(c, hosts=None, json=False, yes=False):
    """
    Bring the newest state of each API key to all hosts.

    For hosts that missed a change or were installed anew; `inv provision` does it too.

        inv keys.sync
    """
    from deploy.api_keys.commands import sync_keys

    _spread(
        c,
        "bring the newest API keys to all hosts,",
        hosts,
        json,
        yes,
        lambda clients, now: sync_keys(clients),
    )


@command(flags={"hosts": _HOSTS, "json": _JSON})
def keys_list(c, hosts=None, json=False):
    """
    Show the API keys; never a token.

    Reads hosts; changes nothing.  Exits 26 where hosts hold different lists or do not answer.

        inv keys.list
    """
    import time

    from deploy.api_keys.spread import read_lists
    from deploy.cli import key_report
    from deploy.wiring import checkout
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    with waiting("the API keys of the hosts"), connect(fleet) as on:
        lists = read_lists(on.clients)
    table = "" if json else key_report.keys_table(lists, int(time.time()))
    finish(key_report.keys_json(lists), table, key_report.lists_error(lists), as_json=json)


def _issue(c, does, hosts, json, yes, issue):
    """
    Ask, issue a token on all hosts, and print it alone on stdout.
    """
    from deploy.cli import key_report

    issued = _on_all_hosts(c, does, hosts, yes, issue)
    print_progress(key_report.spread_text(issued.spread))
    finish(key_report.issued_json(issued), issued.token, issued.error, as_json=json)


def _spread(c, does, hosts, json, yes, change):
    """
    Ask, change the keys on all hosts, and print which hosts hold the list.
    """
    from deploy.cli import key_report

    spread = _on_all_hosts(c, does, hosts, yes, change)
    text = key_report.spread_text(spread)
    finish(key_report.spread_json(spread), text, spread.error, as_json=json)


def _on_all_hosts(c, does, hosts, yes, change):
    import time

    from deploy.wiring import checkout
    from deploy.wiring.hosts import connect

    fleet = with_sudo_password(checkout.fleet(fleet_name(hosts, c.get("fleet"))))
    confirm(f"{does} on {', '.join(host.name for host in fleet.hosts)}?", yes=yes)
    with waiting("the API keys of the hosts"), connect(fleet) as on:
        return change(on.clients, int(time.time()))


@command(flags={"keep": "Leave the lab up afterwards.",
                "fresh": "Begin with empty disks (default); --no-fresh keeps hosts that run.",
                "json": _JSON})  # fmt: skip
def demo(c, keep=False, fresh=True, json=False):
    """
    Do the main job on four real hosts under live traffic.

    Lab up, provision, release v1, release v2 with a canary, refuse two bad releases, roll back,
    verify.  Needs root on a Debian-like machine; brings the lab down at the end.

        inv demo
    """
    from deploy.demo.demo import run_demo

    with waiting("the lab") as progress:
        result = run_demo(keep=keep, fresh=fresh, progress=progress)
    finish(result.as_json(), result.lines(), None, as_json=json)
    sys.exit(0 if result.is_good else 1)


@command(flags={"faults": "Only these faults, such as SIGKILL,crash (default: all).",
                "lines": "Only journal lines with one of these words, comma-separated.",
                "commands": "release, rollback or both, comma-separated (default: both).",
                "limit": "Most cells of each command, spread over lines and faults (default: all).",
                "labs": "Labs of two hosts side by side (default 4).",
                "first-lab": "Number of the first lab, 1 to 8; another drill has others "
                             "(default 1).",
                "state": "Where the desired state lives: hosts or etcd (default hosts).",
                "keep": "Leave the labs up afterwards, and say where their fleet files are.",
                "json": _JSON})  # fmt: skip
def drill(c, faults="", lines="", commands="", limit="0", labs="4", first_lab="1", state="hosts",
          keep=False, json=False):  # fmt: skip
    """
    Inject every fault at every journal line of a release.

    On labs of its own, under live traffic, for releases and rollbacks: SIGKILL, SIGTERM, cut,
    reboot, crash, freeze, full disk, HAProxy killed, clock jump, second operator.  Needs root.
    Exits 1 when a host did not come back by itself to one version that serves.

        inv drill --faults SIGKILL,crash --limit 4
    """
    from deploy.drill.drill import drill_options, run_drill

    options = drill_options(
        faults=faults, lines=lines, tasks=commands, limit=whole_number("limit", limit),
        labs=whole_number("labs", labs), keep=keep, state=state,
        first_lab=whole_number("first-lab", first_lab),
    )  # fmt: skip
    with waiting("the drill") as progress:
        result = run_drill(options, progress)
    finish(result.as_json(), result.table(), None, as_json=json)
    sys.exit(0 if result.is_good else 1)


@command(flags={"unit": "Only what needs no hosts: seconds instead of minutes.",
                "driver": "Only Debian's NVIDIA driver on a lab host, modules built: ten minutes.",
                "args": "More arguments for pytest, separated by spaces."})  # fmt: skip
def test(c, unit=False, driver=False, args=""):
    """
    Test everything that can be tested on this machine.

    Lint, types, unit tests, the simulation, then the lab tests on real hosts (root, minutes).
    As root on Debian it installs haproxy, not started, and unpacks an sshd, which tests run.

        inv test --unit
    """
    from deploy.cli.programs import run_checks, run_driver_test

    if driver:
        sys.exit(run_driver_test(arguments=args, is_unit=unit))
    sys.exit(run_checks(is_unit=unit, arguments=args, progress=print_progress))


@command(flags={"torch": "Version of torch, such as 2.3 or 2.3.1+cu118 (default: any).",
                "cuda": "CUDA version, such as 12.8; cpu for a build without (default: any CUDA).",
                "python": "Python of the environment, such as 3.11 (default: the best).",
                "driver": "NVIDIA driver of the host: 580.95.05, or a branch (default: any).",
                "gpu": "GPUs of the host: models or compute capabilities, with commas between.",
                "os": "Distribution of the host, such as debian12 (default: any).",
                "host": "A host of the fleet to read driver, GPUs and distribution from.",
                "all": "Show every row that fits, not the best ones alone.",
                "hosts": _HOSTS, "json": _JSON})  # fmt: skip
def matrix(c, torch="", cuda="", python="", driver="", gpu="", os="", host="", all=False,
           hosts=None, json=False):  # fmt: skip
    """
    Show the version matrix.

    With flags it shows which rows fit.  Touches no host, except that --host reads one.  Exits 30
    where no row fits, and names each conflict and the nearest rows.

        inv matrix --torch 2.3 --gpu h100 --driver 535.161.08
    """
    from deploy.cli import matrix_report, report
    from deploy.versions.matrix import load_matrix

    rows = load_matrix()
    asked = {"torch": torch, "cuda": cuda, "python": python}
    known = {"driver": driver, "gpu": gpu, "os": os}
    if not (all or host or any(asked.values()) or any(known.values())):
        table = matrix_report.matrix_table(rows)
        return finish(report.matrix_json(rows), table, None, as_json=json)
    fleet = fleet_name(hosts, c.get("fleet")) if host else ""
    answer = matrix_report.answer(asked, known, host=host, fleet=fleet)
    table = answer.table(is_whole=all)
    return finish(answer.as_json(), table, answer.error, as_json=json)


@command(flags={"hosts": "How many hosts (default 4).", "fresh": "Empty their disks first.",
                "json": _JSON})  # fmt: skip
def lab_up(c, hosts="4", fresh=False, json=False):
    """
    Boot lab hosts and wait until they answer over SSH.

    The first time builds the base tree, cached under ~/.cache/slipway.

        inv lab.up --hosts 4
    """
    from deploy.cli import report, tables
    from deploy.lab import lab

    count = whole_number("hosts", hosts)
    with waiting("the lab") as progress:
        state = lab.up(count, progress=progress, fresh=fresh)
    finish(report.lab_json(state), tables.lab_table(state), None, as_json=json)


@command()
def lab_down(c):
    """
    Stop the lab; leave no process, mount, link or nft table.
    """
    from deploy.lab import lab

    with waiting("the lab to end") as progress:
        lab.down(progress=progress)


@command(flags={"json": _JSON})
def lab_status(c, json=False):
    """
    Show the lab's hosts.
    """
    from deploy.cli import report, tables
    from deploy.lab import lab

    state = lab.status()
    finish(report.lab_json(state), tables.lab_table(state), None, as_json=json)


@command(positional=("host",), flags={"host": "Name of the host, such as n1."})
def lab_ssh(c, host):
    """
    Open a shell on a lab host.
    """
    from deploy.lab import lab

    argv = lab.ssh_argv(host)
    os.execvp(argv[0], argv)  # noqa: S606 - our own argv


@command(
    flags={
        "kind": "good-v1, good-v2, nan or garbled (default good-v1).",
        "out": "Directory to write (default .slipway/models/KIND).",
    }
)
def lab_model(c, kind="good-v1", out=""):
    """
    Make a tiny GLM model for the lab: two good ones, two bad ones.

        inv lab.model --kind good-v1
    """
    from deploy.wiring import lab_models

    target = path_from_caller(out) if out else None
    with waiting(f"lab model {kind}") as progress:
        directory = lab_models.make_lab_model(kind, target, progress)
    print_text(str(directory))


def _lab_fault(name: str, does: str) -> Any:
    def fault(c, host):
        from deploy.cli.faults import inject_fault

        with waiting(f"{name} of {host}") as progress:
            inject_fault(name, host, progress)
        print_progress(f"{host}: {name}")

    fault.__doc__ = does
    flags = {"host": "Name of the host, such as n1."}
    return command(name=name, positional=("host",), flags=flags)(fault)


@command(flags={"device": "cuda or cpu (default: cuda where there is one).",
                "shape": "glm-4-9b or tiny (default: by device); weights are random.",
                "lines": "Lines of work, comma-separated, such as batch-1,mix-256 (default: all).",
                "runs": "Runs of each line, after its warm-up (default 3); the median counts.",
                "runs-mix": "Runs of the lines with mixed lengths (default: as --runs).",
                "peer": "Engines to run beside ours where installed: vllm,transformers.",
                "json": _JSON})  # fmt: skip
def bench_engine(c, device="", shape="", lines="", runs="", runs_mix="", peer="", json=False):
    """
    Time the engine on this machine, beside what it allows.

    Runs `python -m runtime.bench`, which needs only torch and Triton.  Touches no host.  Exits 1
    when a line of work failed; the others are reported all the same.

        inv bench.engine --device cpu
    """
    from deploy.cli.programs import run_engine_bench

    flags = {"device": device, "shape": shape, "lines": lines, "runs": runs,
             "runs-mix": runs_mix, "peer": peer}  # fmt: skip
    sys.exit(run_engine_bench(flags, as_json=json))


@command(flags={"hosts": "How many hosts (default 4).",
                "runs": "Rollbacks with all hosts up, before the one with a dead host (default 3).",
                "keep": "Leave the lab up afterwards.",
                "json": _JSON})  # fmt: skip
def bench_rollback(c, hosts="4", runs="3", keep=False, json=False):
    """
    Time rollbacks on lab hosts: warm, stopped, one dead.

    Measures inside the hosts when the bad version has no traffic any more.  Needs root.

        inv bench.rollback --hosts 4
    """
    from deploy.drill.rollback_times import time_rollbacks

    count, times = whole_number("hosts", hosts), whole_number("runs", runs)
    with waiting("the lab") as progress:
        result = time_rollbacks(hosts=count, runs=times, keep=keep, progress=progress)
    finish(result.as_json(), result.table(), None, as_json=json)


@command(flags={"counts": "Sizes of the fleets, comma-separated (default 10,100,1000).",
                "latency": "Milliseconds until a host has answered a command (default 5).",
                "json": _JSON})  # fmt: skip
def bench_fleet(c, counts="10,100,1000", latency="5", json=False):
    """
    Time a release and a rollback of simulated fleets.

    The hosts are simulated in a process of their own; time and memory are the controller's.
    Touches no host.

        inv bench.fleet --counts 10,100
    """
    from deploy.bench.fleet import time_fleets

    sizes = [whole_number("counts", size) for size in counts.split(",")]
    with waiting("the simulated hosts") as progress:
        result = time_fleets(sizes, latency_ms=whole_number("latency", latency), progress=progress)
    finish(result.as_json(), result.table(), None, as_json=json)


@command(flags={"hosts": "How many hosts (default 4).",
                "again": "Runs with nothing left to change, after the first (default 3).",
                "delay": "Milliseconds each way of the slow links; 0: only LAN (default 25).",
                "tools": "Only these, comma-separated: slipway, pyinfra, mitogen, Ansible.",
                "json": _JSON})  # fmt: skip
def bench_provision(c, hosts="4", again="3", delay="25", tools="", json=False):
    """
    Time provisioning of bare lab hosts beside its peers.

    Ansible with pipelining, mitogen and plain pyinfra bring the same resources, as whole processes,
    over LAN and slow links.  Needs root and the package index.

        inv bench.provision --tools slipway,Ansible
    """
    from deploy.bench.provision.times import time_provisioning
    from deploy.bench.provision.tools import tools_named

    with waiting("the lab") as progress:
        result = time_provisioning(
            hosts=whole_number("hosts", hosts), again=whole_number("again", again),
            delay_ms=whole_number("delay", delay), tools=tools_named(tools), progress=progress,
        )  # fmt: skip
    finish(result.as_json(), result.table(), None, as_json=json)


_keys = Collection("keys")
_keys.add_task(keys_add, name="add")
_keys.add_task(keys_list, name="list")
_keys.add_task(keys_rotate, name="rotate")
_keys.add_task(keys_revoke, name="revoke")
_keys.add_task(keys_sync, name="sync")

_lab = Collection("lab")
_lab.add_task(lab_up, name="up")
_lab.add_task(lab_down, name="down")
_lab.add_task(lab_status, name="status")
_lab.add_task(lab_ssh, name="ssh")
_lab.add_task(lab_model, name="model")
for _name, _does in {
    "cut": "Drop all frames to and from a lab host.",
    "heal": "End a cut of a lab host.",
    "crash": "Kill a lab host as a power loss would.",
    "start": "Boot a crashed lab host with its disk kept.",
    "freeze": "Freeze every process of a lab host.",
    "thaw": "Thaw a frozen lab host.",
}.items():
    _lab.add_task(_lab_fault(_name, _does), name=_name)

_certs = Collection("certs")
_certs.add_task(certs_create, name="create")
_certs.add_task(certs_renew, name="renew")
_certs.add_task(certs_show, name="show")

_bench = Collection("bench")
_bench.add_task(bench_engine, name="engine")
_bench.add_task(bench_fleet, name="fleet")
_bench.add_task(bench_provision, name="provision")
_bench.add_task(bench_rollback, name="rollback")

ns = Collection(
    demo,
    drill,
    test,
    matrix,
    trust,
    provision,
    verify,
    bundle,
    plan,
    release,
    rollback,
    abort,
    pause,
    resume,
    promote,
    status,
    history,
    _certs,
    _keys,
    _lab,
    _bench,
)
