"""
Makes valid things; a test names only what matters to it.
"""

from deploy.host.protocol import GoodRelease, OwnCounters, ProxyCounters, SlotCounters
from deploy.inventory.schema import ReleasePolicy
from deploy.release.evidence import Reading
from deploy.release.observe import Observed, ObservedSlot


def make_slot(slot="blue", **changes):
    fields = {
        "slot": slot,
        "bundle": None,
        "version": None,
        "unit": "inactive",
        "weight_pct": 0,
        "haproxy": "MAINT",
        "sessions": 0,
        "is_ready": False,
    }
    return ObservedSlot(**fields | changes)


def make_serving(slot="blue", bundle="b1", version="v1", **changes):
    serving = {"weight_pct": 100, "unit": "active", "haproxy": "UP", "is_ready": True}
    return make_slot(slot, **{"bundle": bundle, "version": version} | serving | changes)


def make_good(bundle="b1", version="v1", release=None):
    return GoodRelease(release=release or f"r-{version}", bundle=bundle, version=version)


def make_observed(host="n1", blue=None, green=None, good=(), **changes):
    fields = {
        "host": host,
        "slots": (blue or make_slot("blue"), green or make_slot("green")),
        "good": tuple(good),
        "lease_owner": None,
        "unfinished": None,
        "paused": None,
        "boot_id": "boot-1",
    }
    return Observed(**fields | changes)


def make_settled(host="n1", good=(("b1", "v1"),), **changes):
    """
    A host that serves the last of *good* from blue, with green idle.
    """
    records = [make_good(bundle, version) for bundle, version in good]
    last = records[-1]
    blue = make_serving("blue", last.bundle, last.version)
    return make_observed(host, blue=blue, good=records, **changes)


def make_reading(at_s=0.0, requests=0, errors=0, own=None, proxy=None, **changes):
    """
    A slot that answered *requests*, of which *errors* with 500, as HAProxy saw it too.

    Args:
        own, proxy: Counters that differ from these; False: they could not be read.
    """
    of_own = {"requests": requests, "errors": errors, "answers_5xx": errors}
    of_proxy = dict.fromkeys(ProxyCounters.__dataclass_fields__, 0) | {
        "attempts": requests,
        "answers_2xx": requests - errors,
        "answers_5xx": errors,
    }
    fields = {
        "own": None if own is False else OwnCounters(**of_own | (own or {})),
        "proxy": None if proxy is False else ProxyCounters(**of_proxy | (proxy or {})),
        "problem": None,
        "restarts": 0,
        "is_ready": True,
        "unit": "active",
    }
    return Reading(at_s, SlotCounters(**fields | changes))


def make_policy(**changes):
    """
    Short canaries on little traffic; `canary`, `gates` and the rest as a fleet file has them.
    """
    canary = {"share_pct": 10, "duration": "6s", "give_up_after": "30s", "min_requests": 20}
    fields = {"canary": canary, "waves": [1, "100%"], "lease_ttl": "15s"}
    return ReleasePolicy.model_validate(fields | changes)
