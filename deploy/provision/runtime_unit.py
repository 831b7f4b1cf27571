"""
The unit of the runtime, its slice, its configuration and its secrets.

No slot is started or restarted: a change takes effect at the next release.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, File, UnitsLoaded
from deploy.provision.spec import HostSpec
from deploy.templating import render
from runtime import contract
from runtime.contract.engine_options import OLDEST_VERSION, OPTIONS, EngineOptions, host_document

UNIT_FILE = "/etc/systemd/system/slipway-runtime@.service"
SLICE_FILE = "/etc/systemd/system/slipway.slice"
_MARGIN_S = 15.0  # added to the drain timeout, before systemd kills the runtime


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    return [
        File(path=SLICE_FILE, content=render("slipway.slice").encode()),
        File(path=UNIT_FILE, content=unit(spec).encode()),
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
            secret=True,
        ),
    ]


def activate(spec: HostSpec) -> list[AnyResource]:
    return [UnitsLoaded(units=tuple(layout.unit(slot) for slot in layout.SLOTS))]


def unit(spec: HostSpec) -> str:
    """
    Return the text of the template unit of the slots.
    """
    service = spec.service
    return render(
        "slipway-runtime@.service",
        slot_links=layout.SLOT_LINKS,
        run=layout.RUN,
        user=layout.USER,
        runtime_config=layout.RUNTIME_CONFIG,
        environment=layout.ENVIRONMENT,
        venv=contract.VENV_LINK,
        env={
            "slot": contract.ENV_SLOT,
            "socket": contract.ENV_SOCKET,
            "release_dir": contract.ENV_RELEASE_DIR,
            "host_config": contract.ENV_HOST_CONFIG,
            "tokens_count": contract.ENV_API_TOKENS_COUNT,
        },
        tokens_count=len(spec.api_tokens),
        exit_config=contract.EXIT_CONFIG,
        gpu=service.options.device == "cuda",
        vllm=service.options.engine == "vllm",
        gpus=service.options.gpus,
        threads=service.options.threads,
        memory_max_bytes=service.memory_max,
        tasks_max=service.tasks_max,
        start_timeout_s=_whole(service.start_timeout),
        stop_timeout_s=_whole(spec.drain_timeout_s + _MARGIN_S),
        watchdog_s=_whole(service.watchdog),
    )


def config(spec: HostSpec) -> str:
    """
    Return the text of /etc/slipway/runtime.yml.
    """
    return render(
        "runtime.yml",
        service=spec.service,
        cors_origins=list(spec.service.cors_origins),
        **_engine_keys(spec.service.options),
        drain_timeout_s=spec.drain_timeout_s,
    )


def _engine_keys(options: EngineOptions) -> dict[str, dict[str, object]]:
    """
    Return the keys that every release reads, and those that only newer ones do.
    """
    document = host_document(options)
    old = {k: v for k, v in document.items() if OPTIONS[k].rules.since <= OLDEST_VERSION}
    return {"known": old, "newer": {k: v for k, v in document.items() if k not in old}}


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
