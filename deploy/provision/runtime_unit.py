"""
The unit of the runtime, its slice, its configuration and its secrets.

No slot is started or restarted for a change, which takes effect at the next release.  One that
should run and does not is started again.
"""

import posixpath

from deploy.host import layout
from deploy.host.tree import UNCOMPARED
from deploy.inventory.schema import Service
from deploy.provision.driver.gpu_state import UNIT as GPU_UNIT
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, File
from deploy.provision.slot_resources import SlotUnit
from deploy.provision.spec import HostSpec
from deploy.provision.unit_resources import UnitsLoaded
from deploy.templating import render
from runtime import contract
from runtime.contract.engine_options import OLDEST_VERSION, OPTIONS, host_document
from runtime.contract.tool_parsers import AUTO

UNIT_FILE = f"{layout.UNITS}/slipway-runtime@.service"
TORCH_FILE = f"{layout.UNITS}/{layout.TORCH_UNIT}"
SLICE_FILE = f"{layout.UNITS}/{layout.SLICE}"
INODES_MAX = 65536  # files and directories in each file system that a slot may write to
_MARGIN_S = 15.0  # added to the drain timeout, before systemd kills the runtime


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    return [
        File(path=SLICE_FILE, content=render("slipway.slice").encode()),
        File(path=UNIT_FILE, content=unit(spec).encode()),
        *(
            File(
                path=f"{layout.UNITS}/{layout.slot_mount(slot)}",
                content=mount(spec, slot).encode(),
            )
            for slot in layout.SLOTS
        ),
        *(File(path=TORCH_FILE, content=torch_unit().encode()) for _ in _torch_units(spec)),
    ]


def configure(spec: HostSpec) -> list[AnyResource]:
    return [
        File(
            path=layout.RUNTIME_CONFIG,
            content=config(spec).encode(),
            group=layout.USER,
            mode="0640",
        ),
        File(
            path=layout.ENVIRONMENT,
            content=environment(spec).encode(),
            mode="0600",
            mac_key=spec.mac_key,
        ),
    ]


def activate(spec: HostSpec) -> list[AnyResource]:
    units = (name(slot) for name in (layout.unit, layout.slot_mount) for slot in layout.SLOTS)
    return [
        UnitsLoaded(units=(*units, layout.SLICE, *_torch_units(spec))),
        *(
            SlotUnit(
                unit=layout.unit(slot),
                socket=layout.runtime_socket(slot),
                start_s=_whole(spec.service.start_timeout),
            )
            for slot in layout.SLOTS
        ),
    ]


def _torch_units(spec: HostSpec) -> tuple[str, ...]:
    return (layout.TORCH_UNIT,) if spec.service.options.device == "cuda" else ()


def torch_unit() -> str:
    """
    Return the text of the unit that compares torch on the GPUs before slots start.
    """
    return render(
        layout.TORCH_UNIT,
        mark=UNCOMPARED,
        gpu_unit=GPU_UNIT,
        slots=[layout.unit(slot) for slot in layout.SLOTS],
        venvs=layout.VENVS,
        python=layout.PYTHON,
        program=layout.HOST_PROGRAM,
    )


def unit(spec: HostSpec) -> str:
    """
    Return the text of the template unit of the slots.
    """
    service = spec.service
    return render(
        "slipway-runtime@.service",
        slot_links=layout.SLOT_LINKS,
        run=layout.RUN,
        user=layout.slot_user("%i"),
        group=layout.USER,
        files=layout.slot_files("%i"),
        socket=layout.runtime_socket("%i"),
        socket_dir=posixpath.dirname(layout.runtime_socket("%i")),
        haproxy_user=layout.HAPROXY_USER,
        tmp_options=f"size={service.tmp_max},nr_inodes={INODES_MAX},mode=1777,nosuid,nodev",
        runtime_config=layout.RUNTIME_CONFIG,
        environment=layout.ENVIRONMENT,
        venv=contract.VENV_LINK,
        env={
            "slot": contract.ENV_SLOT,
            "socket": contract.ENV_SOCKET,
            "release_dir": contract.ENV_RELEASE_DIR,
            "host_config": contract.ENV_HOST_CONFIG,
            "tokens_count": contract.ENV_API_TOKENS_COUNT,
            "keys_file": contract.ENV_KEYS_FILE,
            "host_key_file": contract.ENV_HOST_KEY_FILE,
        },
        api_keys=layout.API_KEYS,
        host_key=layout.HOST_KEY,
        tokens_count=len(spec.api_tokens),
        exit_config=contract.EXIT_CONFIG,
        gpu=service.options.device == "cuda",
        gpu_unit=GPU_UNIT,
        torch_unit=layout.TORCH_UNIT,
        vllm=service.options.engine == "vllm",
        gpus=service.options.gpus,
        threads=service.options.threads,
        memory_max_bytes=service.memory_max,
        tasks_max=service.tasks_max,
        start_timeout_s=_whole(service.start_timeout),
        stop_timeout_s=_whole(spec.drain_timeout_s + _MARGIN_S),
        watchdog_s=_whole(service.watchdog),
    )


def mount(spec: HostSpec, slot: str) -> str:
    """
    Return the text of the unit that mounts the file system of *slot*.
    """
    return render(
        "slipway-slot.mount",
        slot=slot,
        where=layout.slot_files(slot),
        size_bytes=spec.service.state_max,
        inodes=INODES_MAX,
    )


def config(spec: HostSpec) -> str:
    """
    Return the text of /etc/slipway/runtime.yml.
    """
    return render(
        "runtime.yml",
        service=spec.service,
        cors_origins=list(spec.service.cors_origins),
        **_option_keys(spec.service),
        drain_timeout_s=spec.drain_timeout_s,
    )


def _option_keys(service: Service) -> dict[str, dict[str, object]]:
    """
    Return the keys that every release reads, and those that only newer ones do.
    """
    document = host_document(service.options)
    old = {k: v for k, v in document.items() if OPTIONS[k].rules.since <= OLDEST_VERSION}
    newer = {k: v for k, v in document.items() if k not in old} | _newer_keys(service)
    if service.tool_parser != AUTO:
        newer["tool_parser"] = service.tool_parser
    return {"known": old, "newer": newer}


def _newer_keys(service: Service) -> dict[str, object]:
    """
    Return the keys with another value than their default that releases of before refuse.
    """
    found = {
        "max_body_bytes": (service.max_body, contract.MAX_BODY_BYTES),
        "log_level": (service.log_level, "info"),
        "request_log": (service.request_log, False),
    }
    return {key: value for key, (value, default) in found.items() if value != default}


def environment(spec: HostSpec) -> str:
    """
    Return the text of /etc/slipway/environment, which holds secrets.
    """
    return render(
        "environment",
        api_tokens_name=contract.ENV_API_TOKENS,
        api_tokens=",".join(token.reveal() for token in spec.api_tokens),
    )


def _whole(seconds: float) -> int:
    # At least one second: to systemd 0 means no timeout.
    return max(1, round(seconds))
