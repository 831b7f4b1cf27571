"""
What is not as it should be on the hosts of a fleet, each with what to do.  Pure.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deploy.errors import DeployError, FleetDiffers, TransportError
from deploy.foreign_text import quoted
from deploy.host.layout import unit
from deploy.host.protocol import KeysStamp
from deploy.host.slots import systemd
from deploy.release.observe import Observed, ObservedSlot
from deploy.release.one_release import differing

FLEET_NAME = "the fleet"  # as the host of a finding
EXPIRES_SOON = timedelta(days=14)  # before the end of a certificate
_WORST = 3  # findings that the error quotes


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that is not as it should be.

    Attributes:
        host: FLEET_NAME: it concerns no single host.
        is_explained: A release in progress does that; or it waits for the operator by intention.
    """

    host: str
    what: str
    fix: str
    is_explained: bool = False

    def as_json(self) -> dict[str, str]:
        return {"host": self.host, "what": self.what, "fix": self.fix}


def find(
    seen: Mapping[str, Observed | DeployError],
    *,
    differs: Mapping[str, str] | None = None,
    last_seen: Mapping[str, str] | None = None,
    unavailable: DeployError | None = None,
    now: datetime | None = None,
    wants_tls: bool = False,
    can_resume: bool = True,
    can_abort: bool = True,
) -> tuple[Finding, ...]:
    """
    Return the findings of all hosts, in their order.

    Args:
        differs: What is not as the desired state says, by host.
        last_seen: When each host was last read from this machine, in UTC.
        unavailable: Why the place of the desired state could not be read.
        now: Time at which certificates are judged; None: their ends are not.
        wants_tls: The fleet file has TLS on the public port.
        can_resume: `inv resume` would go on with the last release.
        can_abort: `inv abort` would take it back.
    """
    readable = {name: state for name, state in seen.items() if isinstance(state, Observed)}
    is_busy = any(current.lease_owner for current in readable.values())
    most = _most_served(readable)
    keys = _most_keys(readable)
    enders = _enders(can_resume, can_abort)
    found: list[Finding] = []
    is_unlike = False
    for name, state in seen.items():
        if isinstance(state, DeployError):
            found.append(_unreadable(name, state, (last_seen or {}).get(name)))
            continue
        found += _of_slots(state, is_busy, enders)
        found += _of_host(state, is_busy, enders, can_resume)
        found += _of_certificate(state, now, wants_tls)
        found += _of_keys(state, keys)
        text = (differs or {}).get(name) or _unlike(state, most)
        if text:
            fix = "inv resume brings it there, or inv rollback" if can_resume else _alone_to(name)
            found.append(Finding(name, text, fix, is_busy))
            is_unlike = True
    if not is_unlike and (text := _without_majority(readable)):
        fix = "inv rollback --to VERSION, with the one that all hosts should serve"
        found.append(Finding(FLEET_NAME, text, fix, is_busy))
    if unavailable is not None:
        what = "the desired state in etcd is unknown, and that of the hosts may be older: "
        what += f"{unavailable.what}: {unavailable.why}"
        found.append(Finding(FLEET_NAME, what, unavailable.fix))
    return tuple(found)


def certificate_findings(
    seen: Mapping[str, Observed | DeployError], now: datetime, *, wants_tls: bool = False
) -> tuple[Finding, ...]:
    """
    Return the findings about certificates alone, and the hosts that cannot be read.

    Args:
        wants_tls: The fleet file has TLS on the public port.
    """
    found: list[Finding] = []
    for name, state in seen.items():
        if isinstance(state, DeployError):
            found.append(_unreadable(name, state, None))
        else:
            found += _of_certificate(state, now, wants_tls)
    return tuple(found)


def fleet_error(findings: Sequence[Finding]) -> FleetDiffers | None:
    """
    Return the error of a fleet that is not as it should be; None where all is explained.
    """
    open_ones = [finding for finding in findings if not finding.is_explained]
    if not open_ones:
        return None
    hosts = list(dict.fromkeys(finding.host for finding in open_ones))
    why = "; ".join(f"{finding.host}: {finding.what}" for finding in open_ones[:_WORST])
    more = len(open_ones) - _WORST
    return FleetDiffers(
        f"{', '.join(hosts)}: not as {'it' if len(hosts) == 1 else 'they'} should be",
        why=why + (f"; and {more} more" if more > 0 else ""),
        fix=open_ones[0].fix,
    )


def _unreadable(name: str, error: DeployError, last_seen: str | None) -> Finding:
    what = f"{error.what}: {error.why}"
    if isinstance(error, TransportError):
        since = f"last seen {last_seen}" if last_seen else "never seen from this machine"
        what += f" ({since})"
    return Finding(name, what, error.fix)


def _of_slots(current: Observed, is_busy: bool, enders: str) -> Iterator[Finding]:
    name = current.host
    provision = f"inv provision --limit {name}"
    if not current.has_weights:
        what = "HAProxy does not answer, so the shares of its traffic are unknown"
        yield Finding(name, what, f"{provision} or inv rollback starts it again")
    for slot in current.slots:
        unmask = f"on the host: {systemd.unmask_command(unit(slot.slot))}"
        if slot in current.dead_slots:
            what = f"slot {slot.slot} has {slot.weight_pct} % of the traffic, and {_dead(slot)}"
            fix = f"{provision} starts it again; inv rollback leaves its release"
            yield Finding(name, what, f"{unmask}, then {provision}" if slot.is_masked else fix)
        elif slot.is_masked:
            yield Finding(name, f"slot {slot.slot} cannot be started: it is masked", unmask)
        elif slot.has_traffic and not slot.is_ready:
            what = f"slot {slot.slot} has {slot.weight_pct} % of the traffic, and is not ready"
            fix = f"journalctl -u {unit(slot.slot)} on {name}; inv rollback leaves its release"
            yield Finding(name, what, fix, is_busy)
    serving = [slot for slot in current.slots if slot.has_traffic]
    if len(serving) > 1:
        shares = " and ".join(f"{quoted(s.version or '-')} {s.weight_pct} %" for s in serving)
        what = f"its traffic is split, {shares}"
        what += "" if is_busy else ", and no release is in progress"
        yield Finding(name, what, _clear(name, enders), is_busy)
    if current.good and current.has_weights and not serving:
        yield Finding(name, "no slot has traffic", f"inv rollback --limit {name} --to VERSION")


def _dead(slot: ObservedSlot) -> str:
    if slot.is_masked:
        return "its unit is masked"
    return "its unit is stopped" if slot.unit == "inactive" else "systemd has given up on its unit"


def _of_host(current: Observed, is_busy: bool, enders: str, can_resume: bool) -> Iterator[Finding]:
    name = current.host
    if current.went_back is not None and not is_busy:
        back = current.went_back
        what = f"it went back by itself from {quoted(back.release)} at {quoted(back.at)}"
        fix = "inv resume goes on with the release; inv rollback or inv abort ends it"
        fix = fix if can_resume else _alone_to(name)
        yield Finding(name, f"{what}: {quoted(back.why)}", fix)
    if not current.is_reserve_whole:
        fix = f"free space there, then inv provision --limit {name}"
        yield Finding(name, "the reserve for a full disk was used", fix)
    if current.is_open is False:
        what = "its door is closed for a reboot: balancers in front of it send it no requests"
        yield Finding(name, what, "inv provision --waves 1 goes on with it", is_busy)
    if not current.is_deadman_tested:
        fix = f"inv provision --limit {name} tries it out"
        yield Finding(name, "its own way back was never tested: no release begins there", fix)
    if current.is_pending_damaged:
        what = "it does not know what to take back by itself: pending.json is damaged, and lines of"
        what += " its journal are damaged or missing"
        fix = f"inv rollback --limit {name} --to VERSION, with the version that it should serve"
        yield Finding(name, what, fix)
    if current.is_pending_aside:
        what = "a damaged pending.json was put aside: nothing was to be taken back"
        fix = f"inv history --limit {name} shows when; then on {name}: "
        yield Finding(name, what, f"{fix}rm -r /var/lib/slipway/pending.json.damaged")
    if current.lease_owner:
        return
    if current.package_units is None:
        what = "systemd does not answer, so whether its packages change is unknown: no release"
        yield Finding(name, f"{what} begins there", f"on {name}: systemctl is-system-running")
    elif current.package_units:
        units = quoted(", ".join(current.package_units))
        fix = f"inv provision --limit {name} follows it to its end"
        yield Finding(name, f"{units} changes its packages: no release begins there", fix)
    if current.paused:
        what = f"paused: {quoted(current.paused)}"
        if can_resume:
            fix = "inv resume or inv promote goes on, inv abort drops it"
        else:  # another release or a rollback came since, on other hosts
            fix = _clear(name, enders)
        yield Finding(name, what, fix, can_resume)
    elif current.unfinished:
        what = f"ended in the middle: {quoted(current.unfinished_text or '')}"
        yield Finding(name, what, _clear(name, enders), is_busy)


def _of_certificate(current: Observed, now: datetime | None, wants_tls: bool) -> Iterator[Finding]:
    if not current.has_tls:
        if wants_tls:
            what = "its public port is plain HTTP, and the fleet file has TLS"
            yield Finding(current.host, what, f"inv provision --limit {current.host}")
        return
    if current.certificate is None:
        fix = f"systemctl status haproxy on {current.host}; inv provision --limit {current.host}"
        yield Finding(current.host, "its public port shows no certificate", fix)
        return
    fix = f"inv certs.renew --limit {current.host}"
    if not current.is_certificate_kept:
        what = "its public port shows another certificate than its file: a restart brings that one"
        yield Finding(current.host, what, fix)
    ends = current.certificate.not_after
    if now is None or ends - now >= EXPIRES_SOON:
        return
    date = f"{ends:%Y-%m-%d %H:%M} UTC"
    if ends <= now:
        yield Finding(current.host, f"its certificate expired at {date}: clients refuse it", fix)
    else:
        days = (ends - now).days
        # Clients still accept it: shown, and no error yet.
        yield Finding(current.host, f"its certificate ends in {days} days, {date}", fix, True)


def _most_keys(readable: Mapping[str, Observed]) -> KeysStamp | None:
    """
    Return the list of API keys that most hosts hold, None for none; of two, the newer one.
    """
    held = Counter(one.keys for one in readable.values() if one.keys_damage is None)

    def order(stamp: KeysStamp | None) -> tuple[int, int, str]:
        return (held[stamp], stamp.version, stamp.sha256) if stamp else (held[stamp], 0, "")

    return max(held, key=order, default=None)


def _of_keys(current: Observed, most: KeysStamp | None) -> Iterator[Finding]:
    fix = "inv keys.list, then inv keys.sync"
    if current.keys_damage is not None:
        what = f"its list of API keys is damaged: {quoted(current.keys_damage)}"
        yield Finding(current.host, what, fix)
    elif current.keys != most:
        version = f"version {current.keys.version}" if current.keys else "none"
        what = f"its API keys are not those of most hosts: {version}"
        yield Finding(current.host, what, fix)


def _alone_to(name: str) -> str:
    return f"inv rollback --limit {name} --to VERSION, with the version that it should serve"


def _enders(can_resume: bool, can_abort: bool) -> str:
    """
    Return the commands that end what is in the middle.
    """
    commands = ["inv resume"] * can_resume + ["inv abort"] * can_abort
    return " or ".join([*filter(None, [", ".join(commands)]), "inv rollback"])


def _clear(name: str, enders: str) -> str:
    return f"{enders} ends it; alone: inv rollback --limit {name}"


def _most_served(readable: Mapping[str, Observed]) -> str | None:
    """
    Return the bundle that more than half of the serving hosts serve alone.
    """
    alone = Counter(b for current in readable.values() if (b := _alone(current)))
    if not alone:
        return None
    bundle, hosts = alone.most_common(1)[0]
    return bundle if 2 * hosts > alone.total() else None


def _without_majority(readable: Mapping[str, Observed]) -> str | None:
    """
    Return what the hosts serve where they differ, and no release has more than half of them.
    """
    serving = {name: current for name, current in readable.items() if _alone(current)}
    if _most_served(serving) is not None or not (text := differing(serving)):
        return None
    return f"its hosts serve different releases, none of them on most hosts: {text}"


def _alone(current: Observed) -> str | None:
    serving = [slot.bundle for slot in current.slots if slot.has_traffic]
    return serving[0] if len(serving) == 1 else None


def _unlike(current: Observed, most: str | None) -> str | None:
    served = _alone(current)
    if most is None or served is None or served == most:
        return None
    slot = next(slot for slot in current.slots if slot.has_traffic)
    return f"it serves {quoted(slot.version or served[:12])}, unlike most hosts"
