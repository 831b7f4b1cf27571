"""
The unit of the runtime, its slice, its configuration and its secrets.

No slot is started or restarted: a change takes effect at the next release.
"""

from deploy.host import layout
from deploy.inventory.schema import Service
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resources import AnyResource, File, UnitsLoaded
from deploy.provision.spec import HostSpec
from deploy.templating import render
from runtime import contract

UNIT_FILE = "/etc/systemd/system/slipway-runtime@.service"
SLICE_FILE = "/etc/systemd/system/slipway.slice"
# Older releases reject these keys.
NEWER_KEYS = (
    *("weights", "kv", "memory_fraction", "context_tokens", "page_tokens", "step_tokens", "gpus"),
)
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
        },
        exit_config=contract.EXIT_CONFIG,
        gpu=service.device == "cuda",
        vllm=service.engine == "vllm",
        gpus=service.gpus,
        threads=service.threads,
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
        vllm_args=list(spec.service.vllm_args),
        newer=_newer(spec.service),
        drain_timeout_s=spec.drain_timeout_s,
    )


def _newer(service: Service) -> dict[str, object]:
    values = {key: getattr(service, key) for key in NEWER_KEYS}
    return {
        key: value for key, value in values.items() if value != Service.model_fields[key].default
    }


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
