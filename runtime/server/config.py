"""
Environment, host file and release file to one frozen Settings.

The release's config.yml overrides the host's file, key by key.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from runtime.contract import (
    CONFIG_FILE,
    ENV_API_TOKENS,
    ENV_API_TOKENS_COUNT,
    ENV_HOST_CONFIG,
    ENV_HOST_KEY_FILE,
    ENV_KEYS_FILE,
    ENV_RELEASE_DIR,
    ENV_SLOT,
    ENV_SOCKET,
    GOLDEN_FILE,
    MAX_BODY_BYTES,
    MODEL_LINK,
)
from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError
from runtime.contract.option_fields import options_of, with_engine_options
from runtime.contract.tool_parsers import ToolParserName
from runtime.server.admission import AdmissionLimits
from runtime.server.config_yaml import read_config_file

Model = TypeVar("Model", bound=BaseModel)
SLOTS = ("blue", "green")
MAX_PORT = 65535
MAX_SHOWN = 80  # characters of a wrong value

# Both are sent in a header and a metric label.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+/-]{0,127}$")]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # YAML has no tuples


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


if TYPE_CHECKING:
    _EngineKeys = _Strict  # read them as `options`, which has their types
else:
    _EngineKeys = with_engine_options(_Strict)


class HostConfig(_EngineKeys):
    """
    The host's own part, `/etc/slipway/runtime.yml`.  Times are in seconds.

    The keys of `EngineOptions` stand beside these, flat.
    """

    max_queue_requests: int = Field(default=256, ge=0)
    request_timeout_s: float = Field(default=60.0, gt=0)
    drain_timeout_s: float = Field(default=60.0, ge=0)
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_tuple)] = ()
    tool_parser: ToolParserName = "auto"
    max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1024, le=MAX_BODY_BYTES)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    request_log: bool = False

    @property
    def options(self) -> EngineOptions:
        return options_of(self)

    def limits(self, context_tokens: int, vocabulary: int | None = None) -> AdmissionLimits:
        """
        Return the limits of admission for a model of *context_tokens* and *vocabulary* tokens.
        """
        options = self.options
        asked = (options.context_tokens, options.max_batch_tokens)
        return AdmissionLimits(
            context_tokens=min([context_tokens, *(limit for limit in asked if limit)]),
            max_batch_requests=options.max_batch_requests,
            max_queue_requests=self.max_queue_requests,
            request_timeout_s=self.request_timeout_s,
            vocabulary=vocabulary,
        )

    def check(self, where: Path) -> None:
        """
        Check the keys against each other, once all files are merged.

        Raises:
            ConfigError: Two of them are incompatible.
        """
        options = self.options
        if options.weights != "full" and options.precision == "fp32" and options.device == "cuda":
            raise ConfigError(
                f"{where}: weights: {options.weights}, with precision: fp32",
                why="on a GPU weights of 8 and 4 bits are multiplied with fp16 or bf16",
                fix="set precision: bf16, or weights: full",
            )


class RuntimeConfig(HostConfig):
    """
    The merged configuration: the release's keys over the host's.
    """

    version: Name
    model_name: Name


class _Layer(HostConfig):
    """
    A file that may be the host's or the release's.
    """

    version: Name = "unknown"
    model_name: Name = "unknown"


class Settings(BaseModel):
    """
    All settings of one `python -m runtime`.
    """

    model_config = ConfigDict(frozen=True)

    config: RuntimeConfig
    slot: str
    release_dir: Path
    socket: Path | None  # None: a loopback port, for development
    port: int | None
    api_tokens: tuple[SecretStr, ...]
    keys_file: Path | None = None
    host_key_file: Path | None = None

    @property
    def model_dir(self) -> Path:
        return self.release_dir / MODEL_LINK

    @property
    def golden_file(self) -> Path:
        return self.release_dir / GOLDEN_FILE


def load_settings(env: Mapping[str, str], port: int | None = None) -> Settings:
    """
    Read the files that *env* names.

    Raises:
        ConfigError: A variable, file or key is missing or wrong; names which.
    """
    slot = _variable(env, ENV_SLOT)
    if slot not in SLOTS:
        raise ConfigError(
            f"environment: {ENV_SLOT}={slot[:MAX_SHOWN]}",
            why=f"the slots are {' and '.join(SLOTS)}",
            fix=f"start it as slipway-runtime@SLOT.service, or set {ENV_SLOT}",
        )
    if port is not None and not 0 <= port <= MAX_PORT:
        why = f"a port is a number from 1 to {MAX_PORT}; 0 is any that is free"
        raise ConfigError(f"--port {port}: not a port", why=why, fix="say it as --port 8000")
    socket = None if port is not None else Path(_variable(env, ENV_SOCKET))
    release_dir = Path(env.get(ENV_RELEASE_DIR) or ".")
    return Settings(
        config=_release_config(env, release_dir / CONFIG_FILE),
        slot=slot,
        release_dir=release_dir,
        socket=socket,
        port=port,
        api_tokens=_api_tokens(env),
        keys_file=_path(env, ENV_KEYS_FILE),
        host_key_file=_path(env, ENV_HOST_KEY_FILE),
    )


def _release_config(env: Mapping[str, str], release_file: Path) -> RuntimeConfig:
    """
    Return the keys of *release_file* over those of the host's file.
    """
    found = read_config_file(release_file)
    _validate(RuntimeConfig, found, release_file)
    if host_path := env.get(ENV_HOST_CONFIG):
        host_file = Path(host_path)
        host = read_config_file(host_file)
        _validate(HostConfig, host, host_file)
        found = host | found
    config = _validate(RuntimeConfig, found, release_file)
    config.check(release_file)
    return config


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(value) if (value := env.get(name)) else None


def _api_tokens(env: Mapping[str, str]) -> tuple[SecretStr, ...]:
    """
    Return the bearer tokens.

    Raises:
        ConfigError: There are fewer or more than the unit says: without its secrets the runtime
            would serve everybody.  Or they are not UTF-8.
    """
    texts = (token.strip() for token in env.get(ENV_API_TOKENS, "").split(","))
    tokens = tuple(SecretStr(token) for token in texts if token)
    if any("\udc80" <= character <= "\udcff" for character in env.get(ENV_API_TOKENS, "")):
        raise ConfigError(
            f"environment: {ENV_API_TOKENS} is not UTF-8",
            why="one of its bytes begins no character",
            fix="correct the secret, then inv provision",
        )
    count = env.get(ENV_API_TOKENS_COUNT)
    if count is not None and count != str(len(tokens)):
        raise ConfigError(
            f"environment: {ENV_API_TOKENS} has {len(tokens)} tokens",
            why=f"{ENV_API_TOKENS_COUNT}={count}: the fleet file asks for that many",
            fix="inv provision, which writes the file of the secrets again",
        )
    return tokens


def load_config(env: Mapping[str, str], files: Sequence[Path] = ()) -> HostConfig:
    """
    Read only the configuration: *files*, each overriding the one before, or those that *env* names.

    Raises:
        ConfigError: As `load_settings`; slot and socket are not required, and names only where
            *env* has a release.
    """
    if not files:
        release_file = Path(env.get(ENV_RELEASE_DIR) or ".") / CONFIG_FILE
        if env.get(ENV_RELEASE_DIR) or release_file.exists():
            return _release_config(env, release_file)
        host_file = env.get(ENV_HOST_CONFIG)
        files = [Path(host_file)] if host_file else []
    found: dict[str, Any] = {}
    for path in files:
        layer = read_config_file(path)
        _validate(_Layer, layer, path)
        found |= layer
    config = _Layer.model_validate(found)
    config.check(files[-1] if files else Path(CONFIG_FILE))
    return config


def _variable(env: Mapping[str, str], name: str) -> str:
    if value := env.get(name):
        return value
    raise ConfigError(
        f"environment: {name} is not set",
        why="the runtime needs it to identify its slot",
        fix=f"start it as slipway-runtime@SLOT.service, or set {name}",
    )


def _validate(model: type[Model], found: dict[str, Any], path: Path) -> Model:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        complaints = [_complaint(model, dict(one)) for one in error.errors()]
        raise ConfigError(
            f"{path}: {'; '.join(key for key, _ in complaints)}",
            why="; ".join(f"{key}: {why}" for key, why in complaints),
            fix=f"correct the file; the keys are {', '.join(model.model_fields)}",
        ) from error


def _complaint(model: type[BaseModel], error: Mapping[str, Any]) -> tuple[str, str]:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, model.model_fields, n=1)
        return key, "unknown key" + (f", did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return key, "missing"
    return key, f"{error['msg']}, got {repr(error['input'])[:MAX_SHOWN]}"
