"""
The host's own way back: its units, its running timer, and the test that it works.
"""

from deploy.host import layout
from deploy.host.deadman.self_test import mark_of
from deploy.provision.deadman_resources import DeadmanMark, EnabledUnits
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, File
from deploy.provision.spec import HostSpec
from deploy.templating import render


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    return [File(path=path, content=text.encode()) for path, text in units().items()]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    contents = {path: text.encode() for path, text in units().items()}
    mark = mark_of({**contents, layout.HOST_PROGRAM: spec.host_program})
    return [
        EnabledUnits(
            timer=layout.DEADMAN_TIMER,
            enabled=(layout.DEADMAN_TIMER, layout.DEADMAN_BOOT),
            units=layout.DEADMAN_UNITS,
        ),
        DeadmanMark(path=layout.DEADMAN_TESTED, mark=mark),
    ]


def units() -> dict[str, str]:
    """
    Return the text of each unit, by its path.
    """
    values = {
        "service": layout.DEADMAN_SERVICE,
        "program": layout.HOST_PROGRAM,
        "pending": layout.PENDING,
        "test": layout.DEADMAN_TEST,
        "state": layout.STATE,
        "haproxy": layout.HAPROXY_UNIT,
        "slots": [layout.unit(slot) for slot in layout.SLOTS],
    }
    return {f"{layout.UNITS}/{name}": render(name, **values) for name in layout.DEADMAN_UNITS}
