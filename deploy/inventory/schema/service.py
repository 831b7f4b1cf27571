"""
The key `service`.  Pure.
"""

from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deploy.host.protocol import TIMEOUT_MAX_S
from deploy.inventory.names import Origin, SecretName
from deploy.inventory.schema.strict import Deadline, Port, Strict
from deploy.inventory.schema.tls import Tls
from deploy.units import Bytes, Seconds, format_size
from runtime.contract import MAX_BODY_BYTES
from runtime.contract.engine_options import EngineOptions
from runtime.contract.option_fields import fleet_options_of, with_fleet_options
from runtime.contract.tool_parsers import ToolParserName


def _network(value: str) -> str:
    try:
        # Not with a zone, such as fe80::1%eth0: a source address is compared without it.
        if not value.isascii() or "%" in value:
            raise ValueError(value)
        return str(ip_network(value))
    except ValueError:
        raise ValueError(
            "should be an IP address or a network, such as 10.0.0.0/8, without host bits"
        ) from None


Network = Annotated[str, AfterValidator(_network)]
# tmpfs rounds up to whole pages, and takes 0 for no limit.
FileSystemSize = Annotated[Bytes, Field(ge=2**20, le=2**50)]
# For systemd, to which 0 means no limit.
WholeSeconds = Annotated[Seconds, Field(ge=1)]


if TYPE_CHECKING:
    _EngineKeys = Strict  # read them as `options`, which has their types
else:
    _EngineKeys = with_fleet_options(Strict, Seconds)


class Service(_EngineKeys):
    """
    The service of every host, and the limits of its runtime.

    The keys of `EngineOptions` stand beside these, flat.
    """

    port: Port = 8000
    ipv6: bool = True  # the public port listens on IPv6 too
    tls: Tls = Tls()
    memory_max: Annotated[Bytes, Field(ge=256 * 2**20, le=2**50)] = 8 * 2**30  # of one slot
    state_max: FileSystemSize = 2**30  # of one slot, in its memory
    tmp_max: FileSystemSize = 2**30  # of each /tmp, /var/tmp, /dev/shm
    tasks_max: int = Field(default=512, ge=16, le=4_194_304)  # the kernel's largest number of tasks
    monitoring_networks: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    trusted_proxies: tuple[Network, ...] = ()
    connections_per_source: int = Field(default=256, ge=1, le=2048)
    max_connections: int = Field(default=4096, ge=256, le=65536)  # of the public port
    max_body: Annotated[Bytes, Field(ge=64 * 2**10, le=MAX_BODY_BYTES)] = MAX_BODY_BYTES
    max_queue_requests: int = Field(default=256, ge=1, le=1_000_000)
    request_timeout: Deadline = 60.0
    start_timeout: Annotated[WholeSeconds, Field(le=TIMEOUT_MAX_S)] = 300.0  # from start to READY=1
    watchdog: WholeSeconds = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    request_log: bool = False
    cors_origins: tuple[Origin, ...] = ()
    api_tokens: tuple[SecretName, ...] = ()  # names of `secrets`
    tool_parser: ToolParserName = "auto"

    @property
    def options(self) -> EngineOptions:
        return fleet_options_of(self)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.tls.http_challenge_port == self.port:
            raise ValueError(f"port and tls.acme.http_port are both {self.port}: set another port")
        return self

    @model_validator(mode="after")
    def _file_systems_fit_into_memory(self) -> Self:
        for name in ("state_max", "tmp_max"):
            if getattr(self, name) > self.memory_max:
                default = "" if name in self.model_fields_set else " (the default)"
                raise ValueError(
                    f"{name} is {format_size(getattr(self, name))}{default}, and counts against"
                    f" memory_max, which is {format_size(self.memory_max)}: set {name} to less"
                )
        return self
