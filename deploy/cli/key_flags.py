"""
The flags of `inv keys.*` as values.
"""

from deploy.api_keys.commands import KeyOptions
from deploy.cli.arguments import whole_number
from deploy.errors import UsageError
from deploy.foreign_text import visible
from deploy.host.names import KEY, MODEL_NAME, Name
from deploy.host.protocol import KEY_CONCURRENCY_MAX, KEY_MODELS_MAX
from deploy.units import parse_duration_s

_PER_MINUTE_MAX = 10**9 - 1


def key_name(text: str) -> str:
    """
    Return *text*, the name of a key.

    Raises:
        UsageError: It has other characters.
    """
    return _name(KEY, "name", text)


def key_options(
    *,
    expires: str,
    models: str,
    rpm: str,
    tpm: str,
    weight: str,
    priority: str,
    concurrency: str,
) -> KeyOptions:
    """
    Return what a new key may do.

    Raises:
        UsageError: A flag has another form, or is out of range.
    """
    # An empty name is refused: `--models ","` must not allow all models.
    names = tuple(name.strip() for name in models.split(",")) if models else ()
    if len(names) > KEY_MODELS_MAX:
        why = f"at most {KEY_MODELS_MAX} models are kept for a key"
        raise UsageError("--models: too many", why=why, fix="leave --models out to allow all")
    return KeyOptions(
        expires_s=lifetime(expires),
        models=tuple(_name(MODEL_NAME, "models", name) for name in names),
        requests_per_minute=_number("rpm", rpm, 1, _PER_MINUTE_MAX) if rpm else None,
        tokens_per_minute=_number("tpm", tpm, 1, _PER_MINUTE_MAX) if tpm else None,
        weight=_number("weight", weight, 1, 100),
        priority=_number("priority", priority, 0, 9),
        concurrency=(
            _number("concurrency", concurrency, 1, KEY_CONCURRENCY_MAX) if concurrency else None
        ),
    )


def lifetime(text: str) -> int | None:
    """
    Return --expires in whole seconds; None: for ever.

    Raises:
        UsageError: It is no duration, or so short that the token would never be accepted.
    """
    seconds = duration("expires", text) if text else None
    if seconds == 0:
        why = "it is less than a second: the token would never be accepted"
        raise UsageError(f"--expires {text}: too short", why=why, fix="--expires 30d")
    return seconds


def duration(flag: str, text: str) -> int:
    """
    Return *text*, such as 30d, in whole seconds.

    Raises:
        UsageError: It is no duration.
    """
    try:
        return int(parse_duration_s(text))
    except ValueError as error:
        raise UsageError(
            f"--{flag} {visible(text, limit=80)}: not valid", why=str(error), fix=f"--{flag} 30d"
        ) from None


def _number(flag: str, text: str, low: int, high: int) -> int:
    number = whole_number(flag, text)
    if low <= number <= high:
        return number
    raise UsageError(
        f"--{flag} {number}: out of range",
        why=f"it should be from {low} to {high}",
        fix=f"--{flag} {low}",
    )


def _name(kind: Name, flag: str, text: str) -> str:
    try:
        return kind.parse(text)
    except ValueError as error:
        what = f"--{flag} {visible(text, limit=80)}: not valid"
        raise UsageError(what, why=str(error), fix=f"--{flag} web") from None
