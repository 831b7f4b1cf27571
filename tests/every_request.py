"""
One request of each verb, for tests that ask a host everything.
"""

from deploy.host.protocol import (
    FactQuery,
    Golden,
    GoodRecord,
    GoodRollback,
    JournalAppend,
    LeaseAcquire,
    LeaseRelease,
    LeaseRenew,
    Measure,
    Retire,
    SlotStart,
    SlotStop,
    StageCommit,
    StageMissing,
    Status,
    TrafficDrain,
    TrafficSet,
    VenvBuild,
)

BUNDLE = "1" * 64
EVERY_REQUEST = (
    Status(),
    Measure(),
    FactQuery(paths={"/etc/slipway": ""}, packages=("haproxy",), room=("/opt",)),
    LeaseAcquire("me", 30.0),
    LeaseRenew(30.0),
    LeaseRelease(),
    JournalAppend("step", {}),
    GoodRecord(BUNDLE, "v1", "blue"),
    GoodRollback("r1"),
    StageMissing("{}"),
    StageCommit(BUNDLE),
    VenvBuild("", "0" * 64, "3.11", ()),
    Retire(3),
    SlotStart("green", BUNDLE, 5.0),
    SlotStop("green", 5.0),
    Golden("blue", 5.0),
    TrafficSet({"blue": 100, "green": 0}),
    TrafficDrain("green", 1.0),
)
