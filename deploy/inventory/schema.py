"""
Schema of the fleet file, and the loaded fleet.  Instances are frozen and always valid.  Pure.

`inventories/example.yml` shows every key with its meaning, unit, default and range; a test compares
the file with this schema in both directions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from deploy.inventory.names import (
    HOOK,
    SECRET,
    Address,
    ArchiveUrl,
    Component,
    DirectoryUrl,
    Endpoint,
    FilePath,
    HeaderName,
    HookName,
    HostName,
    Identity,
    JumpHosts,
    KeyPrefix,
    Keyring,
    Mailbox,
    Origin,
    ProxyException,
    ProxyUrl,
    RowName,
    SecretName,
    SecretVariable,
    Suite,
    Text,
    UserName,
    VariableName,
    WebhookTarget,
    is_public_name,
)
from deploy.units import Bytes, Ratio, Seconds
from runtime.contract import MAX_BODY_BYTES
from runtime.contract.engine_options import EngineOptions
from runtime.contract.option_fields import fleet_options_of, with_fleet_options
from runtime.contract.tool_parsers import ToolParserName

Port = Annotated[int, Field(ge=1, le=65535)]
Deadline = Annotated[Seconds, Field(gt=0)]  # a deadline of 0 could never be met


VariableValue = Text | int | float | bool


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


def _wave(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?%|100%", value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError(f"should be a number of hosts or a percentage from 1% to 100%, got {value!r}")


Wave = Annotated[int | str, BeforeValidator(_wave)]


class Strict(BaseModel):
    """
    Base of all models here: frozen, and unknown keys are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class Ssh(Strict):
    """
    SSH settings of the fleet.  The `ssh` of a host overrides them key by key.
    """

    user: UserName = "root"
    port: Port = 22
    key: FilePath | None = None
    known_hosts: FilePath = Path("~/.ssh/known_hosts").expanduser()
    jump: JumpHosts | None = None
    client_config: bool = False  # the operator's ~/.ssh/config says what the file leaves open
    sudo_password: bool = False  # sudo asks the user for one
    connect_timeout: Deadline = 10.0
    command_timeout: Deadline = 60.0  # for a remote command without a deadline of its own
    keepalive: Deadline = 5.0


class SshOverride(Strict):
    """
    SSH settings of one host; None takes the fleet's value.
    """

    user: UserName | None = None
    port: Port | None = None
    key: FilePath | None = None
    jump: JumpHosts | None = None


class HostEntry(Strict):
    """
    A host as the file has it, before values of its groups and of the fleet are applied.
    """

    address: Address
    ssh: SshOverride = SshOverride()
    row: RowName | None = None
    vars: dict[VariableName, VariableValue] = {}


class HostGroup(Strict):
    """
    A named set of hosts, with values for all of them.
    """

    hosts: tuple[HostName, ...]
    row: RowName | None = None
    vars: dict[VariableName, VariableValue] = {}


class Secret(Strict):
    """
    Source of a secret's value: an environment variable or a file, exactly one of the two.
    """

    env: SecretVariable | None = None
    file: FilePath | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("should have exactly one of the keys env and file")
        return self


class AptSource(Strict):
    """
    One stanza of a `.sources` file.  `trusted` cannot be said: apt checks every signature.

    Attributes:
        distribution: That of the archive; a host with another one is refused.
        suites: None: those that the host's release of `distribution` has.
        archive: Which of the distribution's archives it is; read where `suites` is None.
        components: None: those that the distribution's installer enables.
        signed_by: Keyring on the hosts; None: any key that apt on the host trusts.
    """

    uris: tuple[ArchiveUrl, ...] = Field(min_length=1)
    distribution: Literal["debian", "ubuntu"] | None = None
    suites: tuple[Suite, ...] | None = Field(default=None, min_length=1)
    archive: Literal["main", "security"] = "main"
    components: tuple[Component, ...] | None = Field(default=None, min_length=1)
    signed_by: Keyring | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.suites is None and self.distribution is None:
            raise ValueError("should have suites, or distribution: debian or ubuntu")
        if self.suites is not None and self.archive != "main":
            raise ValueError("should have suites or archive: security, not both")
        return self


class Mirrors(Strict):
    """
    Package sources of hosts.  None keeps a host's own configuration.

    Attributes:
        no_proxy: Hosts, and domains with a dot in front, that are reached without the proxy.
        ca_bundle: PEM file of the authorities that apt trusts for the archives of `apt`, in place
            of those of the host.
    """

    apt: tuple[AptSource, ...] = ()  # replaces the distribution's sources
    apt_proxy: ProxyUrl | None = None
    no_proxy: tuple[ProxyException, ...] = ()
    ca_bundle: FilePath | None = None


if TYPE_CHECKING:
    _EngineKeys = Strict  # read them as `options`, which has their types
else:
    _EngineKeys = with_fleet_options(Strict, Seconds)


class Acme(Strict):
    """
    Where certificates come from with kind: acme, and how names are proven.

    Attributes:
        server: URL of the ACME server's directory.
        email: For the account; None: without one.
        http_port: Port of the hosts on which HAProxy answers HTTP-01 challenges.  The ACME server
            connects to port 80 of each name.
        dns_hook: Program that sets and removes TXT records for DNS-01 challenges; None: HTTP-01.
    """

    server: DirectoryUrl = "https://acme-v02.api.letsencrypt.org/directory"
    email: Mailbox | None = None
    http_port: Port = 80
    dns_hook: HookName | None = None


class Tls(Strict):
    """
    TLS of the public port.

    Attributes:
        kind: plain: HTTP without TLS.  files: the operator's certificate, on all hosts.
            internal: the fleet's own authority issues a certificate for each host.  acme: an ACME
            server does, such as Let's Encrypt.
        certificate: PEM file: the certificate, then those that sign it.
        key: PEM file of its private key, 0600; it is sent to hosts.
        authority: What clients trust.  With files and acme a PEM file, None: what this machine
            trusts; with acme this machine trusts it too when it asks the ACME server.  With
            internal the directory of the authority, see `inv certs.create`.
        names: DNS names and addresses that clients use; with internal, beside the name and the
            address of each host.  With acme the DNS names of one certificate for all hosts; none:
            each host has a certificate for its own DNS name.
        acme: Read with kind acme alone.
    """

    kind: Literal["plain", "files", "internal", "acme"] = "plain"
    certificate: FilePath | None = None
    key: FilePath | None = None
    authority: FilePath | None = None
    names: tuple[Address, ...] = Field(default=(), max_length=50)
    acme: Acme = Acme()

    @property
    def is_on(self) -> bool:
        return self.kind != "plain"

    @property
    def http_challenge_port(self) -> int | None:
        """
        Port on which hosts answer HTTP-01 challenges; None: they answer none.
        """
        is_http = self.kind == "acme" and self.acme.dns_hook is None
        return self.acme.http_port if is_http else None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        has_files = self.certificate is not None and self.key is not None
        if self.kind == "plain" and self != Tls.model_construct():
            raise ValueError("has keys that kind: plain does not read")
        if self.kind == "files" and not has_files:
            raise ValueError("kind: files needs certificate and key")
        if self.kind == "internal" and self.authority is None:
            raise ValueError("kind: internal needs authority, the directory of inv certs.create")
        if self.kind in ("internal", "acme") and (self.certificate or self.key):
            raise ValueError("has certificate or key, which only kind: files reads")
        wrong = [name for name in self.names if not is_public_name(name)]
        if self.kind == "acme" and wrong:
            raise ValueError(f"kind: acme needs names with a dot, and {wrong[0]} is none")
        return self


class Service(_EngineKeys):
    """
    The service of every host, and the limits of its runtime.

    The keys of `EngineOptions` stand beside these, flat.
    """

    port: Port = 8000
    tls: Tls = Tls()
    memory_max: Annotated[Bytes, Field(gt=0)] = 8 * 2**30  # of one slot
    state_max: Annotated[Bytes, Field(gt=0)] = 2**30  # of one slot, in its memory
    tmp_max: Annotated[Bytes, Field(gt=0)] = 2**30  # of each /tmp, /var/tmp, /dev/shm
    tasks_max: int = Field(default=512, ge=16, le=4_194_304)  # the kernel's largest number of tasks
    monitoring_networks: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    trusted_proxies: tuple[Network, ...] = ()
    connections_per_source: int = Field(default=256, ge=1, le=2048)
    max_connections: int = Field(default=4096, ge=256, le=65536)  # of the public port
    max_body: Annotated[Bytes, Field(ge=64 * 2**10, le=MAX_BODY_BYTES)] = MAX_BODY_BYTES
    max_queue_requests: int = Field(default=256, ge=1, le=1_000_000)
    request_timeout: Deadline = 60.0
    start_timeout: Deadline = 300.0  # from start to READY=1
    watchdog: Deadline = 30.0
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


class CanaryPolicy(Strict):
    """
    Share of traffic of a new release on a wave, and how long it is measured before the verdict.
    """

    share_pct: int = Field(default=10, ge=1, le=50)
    duration: Deadline = 60.0  # shortest time of measuring
    give_up_after: Deadline = 600.0  # with too few requests by then, the release pauses
    min_requests: int = Field(default=100, ge=1)  # answered by the canary, in one wave
    interval: Deadline = 1.0  # between two measurements

    @model_validator(mode="after")
    def _gives_up_after_measuring(self) -> Self:
        if self.give_up_after < self.duration:
            raise ValueError("give_up_after should not be shorter than duration")
        return self


class ErrorRateGate(Strict):
    """
    Limit of the canary's error rate, and what happens above it.
    """

    max: Ratio = 0.05
    min_requests: int = Field(default=20, ge=1)
    action: Literal["pause", "revert"] = "pause"


class RestartsGate(Strict):
    """
    Limit of the new runtime's restarts within a time, and what happens above it.
    """

    max: int = Field(default=3, ge=0)
    within: Deadline = 300.0
    action: Literal["pause", "revert"] = "revert"


class Gates(Strict):
    """
    Conditions that stop a release.
    """

    http_request_error_rate: ErrorRateGate = ErrorRateGate()
    runtime_restarts: RestartsGate = RestartsGate()


class ReleasePolicy(Strict):
    """
    How a release proceeds through the fleet.
    """

    mode: Literal["side_by_side"] = "side_by_side"
    canary: CanaryPolicy = CanaryPolicy()
    waves: tuple[Wave, ...] = Field(default=(1, "50%", "100%"), min_length=1)  # cumulative
    gates: Gates = Gates()
    max_unavailable: int = Field(default=0, ge=0, le=100_000)  # hosts that may be lost
    failure_budget: int = Field(default=0, ge=0, le=100_000)  # hosts that may fail
    keep_old: Literal["stopped", "warm"] = "stopped"  # the old slot, after a release
    drain_timeout: Deadline = 60.0  # longest wait for requests in flight
    lease_ttl: Deadline = 30.0
    keep: int = Field(default=3, ge=2, le=1000)  # good releases kept on a host


class Phase(StrEnum):
    """
    A phase of a release, or a way back, that hooks may accompany.
    """

    RELEASE = "release"  # the whole of it
    STAGE = "stage"
    START = "start"
    CANARY = "canary"
    PROMOTE = "promote"
    BAKE = "bake"
    CONFIRM = "confirm"
    RETIRE = "retire"
    REVERT = "revert"  # a release that takes itself back
    ROLLBACK = "rollback"
    ABORT = "abort"

    @property
    def is_way_back(self) -> bool:
        return self in (Phase.REVERT, Phase.ROLLBACK, Phase.ABORT)


class Hook(Strict):
    """
    A program that the operator's machine runs before or after a phase.

    Attributes:
        run: The program, in the directory `hooks` of the repository, and its arguments.
        timeout: Seconds; then the program and its children are killed, and the hook has failed.
    """

    when: Literal["before", "after"]
    phase: Phase
    run: tuple[Text, ...] = Field(min_length=1)
    timeout: Deadline = 30.0

    @field_validator("run")
    @classmethod
    def _is_of_the_repository(cls, run: tuple[str, ...]) -> tuple[str, ...]:
        # A fleet file may come from somebody else: it may choose among the hooks of the checkout,
        # and no other program.
        HOOK.parse(run[0])
        return run

    @model_validator(mode="after")
    def _leaves_ways_back_alone(self) -> Self:
        if self.when == "before" and self.phase.is_way_back:
            raise ValueError(
                f"{self.phase} is a way back, which nothing may delay: use when: after"
            )
        return self


class WebhookHeader(Strict):
    """
    A header of every message, whose value is a secret.
    """

    name: HeaderName
    secret: SecretName


class Webhook(Strict):
    """
    Where the state of a release is posted: one message for each release, updated.

    Attributes:
        webhook: An https URL, or the name of a secret that has it.
        send: Every new state, or only how the release ended.
    """

    webhook: WebhookTarget
    headers: tuple[WebhookHeader, ...] = ()
    send: Literal["updates", "end"] = "updates"

    @property
    def secret(self) -> str | None:
        """
        The secret that has the URL; None: `webhook` is the URL.
        """
        return None if self.webhook.startswith("https://") else self.webhook


class ReleaseSection(ReleasePolicy):
    """
    The key `release` of a fleet file: the policy, and what accompanies a release.

    Hooks are no part of the policy: that is in the plan, its digest and the state on hosts, and no
    host may choose a program that runs on the operator's machine.
    """

    hooks: tuple[Hook, ...] = ()
    notify: tuple[Webhook, ...] = ()

    @property
    def policy(self) -> ReleasePolicy:
        return ReleasePolicy.model_construct(
            **{name: getattr(self, name) for name in ReleasePolicy.model_fields}
        )


class Signing(Strict):
    """
    The key that signs bundles, and the signers that hosts accept.
    """

    identity: Identity
    key: FilePath  # private key, for `inv bundle`
    allowed_signers: FilePath  # in the format of ssh-keygen(1), ALLOWED SIGNERS


class StateSettings(Strict):
    """
    Where the desired state of the fleet lives: on its hosts, or in an existing etcd.

    Attributes:
        ca: Certificates of the authorities that etcd's are signed by; None: those of this machine.
        cert, key: Client certificate and its key.
        user, password: Of etcd's own authentication.
        prefix: All keys of the fleet begin with it.
    """

    kind: Literal["hosts", "etcd"] = "hosts"
    endpoints: tuple[Endpoint, ...] = ()
    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None
    user: UserName | None = None
    password: SecretName | None = None
    prefix: KeyPrefix = "slipway"

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.kind == "etcd" and not self.endpoints:
            raise ValueError("etcd needs endpoints")
        if self.kind == "hosts" and self != StateSettings.model_construct():
            raise ValueError("has keys that only kind: etcd reads")
        for one, other in (("cert", "key"), ("user", "password")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} belong together")
        return self


class FleetFile(Strict):
    """
    Content of a fleet file.
    """

    row: RowName  # default row of the version matrix
    ssh: Ssh = Ssh()
    mirrors: Mirrors = Mirrors()
    secrets: dict[SecretName, Secret] = {}
    service: Service = Service()
    release: ReleaseSection = ReleaseSection()
    state: StateSettings = StateSettings()
    signing: Signing
    groups: dict[HostName, HostGroup] = {}
    hosts: dict[HostName, HostEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        groups = {name: group.hosts for name, group in self.groups.items()}
        references = secret_references(self.model_dump(include={"service", "release", "state"}))
        for path, problem in dangling_names(groups, self.hosts, references, self.secrets):
            raise ValueError(f"{path}: {problem}")
        return self


def dangling_names(
    groups: Mapping[str, Iterable[object]],
    hosts: Iterable[str],
    references: Iterable[tuple[tuple[str | int, ...], str]],
    secrets: Iterable[str],
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """
    Yield (key path, problem) for each reference to a host or secret that is not defined.
    """
    hosts, secrets = set(hosts), set(secrets)
    for name, members in groups.items():
        for index, host in enumerate(members):
            if host not in hosts:
                yield ("groups", name, "hosts", index), f"no host is named {host!r}"
    for path, secret in references:
        if secret not in secrets:
            yield path, f"no secret is named {secret!r}"


def secret_references(data: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """
    Yield (key path, name) for each use of a secret in *data*, a fleet file that may be invalid.
    """
    tokens = "service", "api_tokens"
    for index, name in enumerate(_list_at(data, tokens)):
        if isinstance(name, str):
            yield (*tokens, index), name
    notify = "release", "notify"
    for index, webhook in enumerate(_list_at(data, notify)):
        url = webhook.get("webhook") if isinstance(webhook, Mapping) else None
        if isinstance(url, str) and re.fullmatch(SECRET.regex, url):
            yield (*notify, index, "webhook"), url
        for number, header in enumerate(_list_at(webhook, ("headers",))):
            name = header.get("secret") if isinstance(header, Mapping) else None
            if isinstance(name, str):
                yield (*notify, index, "headers", number, "secret"), name
    state = data.get("state") if isinstance(data, Mapping) else None
    password = state.get("password") if isinstance(state, Mapping) else None
    if isinstance(password, str):
        yield ("state", "password"), password


def _list_at(data: object, path: tuple[str, ...]) -> Sequence[object]:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, list | tuple) else ()


class Hop(Strict):
    """
    One SSH connection on the way to a host.

    Attributes:
        keys: Files of private keys; empty: those of the agent and the usual ones of ~/.ssh.
        only_keys: Keys of the agent are used only where they are one of `keys`.
        known_as: Name and port under which known_hosts has its key.
    """

    user: str
    address: str
    port: int
    keys: tuple[Path, ...]
    only_keys: bool
    known_hosts: tuple[Path, ...]
    known_as: tuple[str, int]


class Host(Strict):
    """
    One host with final values: its own, else those of its groups, else the fleet's.

    Attributes:
        open_keys: Keys of `ssh` that neither the host nor the fleet sets.
        route: The way to the host by ~/.ssh/config, the host itself last; empty: as `ssh` says.
    """

    name: HostName
    address: Address
    groups: tuple[str, ...]
    row: str
    ssh: Ssh
    vars: dict[str, str | int | float | bool]
    open_keys: frozenset[str] = frozenset()
    route: tuple[Hop, ...] = ()


class Fleet(Strict):
    """
    A loaded fleet, with all of its hosts or a selection.

    Attributes:
        hosts: Those to work on.
        others: Those that were not selected; they hold the fleet's desired state too.
    """

    name: str
    path: Path
    hosts: tuple[Host, ...]
    others: tuple[Host, ...] = ()
    mirrors: Mirrors
    secrets: dict[str, Secret]
    service: Service
    release: ReleasePolicy
    signing: Signing
    hooks: tuple[Hook, ...] = ()
    notify: tuple[Webhook, ...] = ()
    state: StateSettings = StateSettings()

    def without(self, names: Iterable[str]) -> tuple[Host, ...]:
        """
        Return the hosts of the whole fleet that are not in *names*.
        """
        return tuple(host for host in (*self.hosts, *self.others) if host.name not in set(names))

    def host(self, name: str) -> Host:
        """
        Return the host *name*.

        Raises:
            KeyError: The fleet has no host with this name.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)
