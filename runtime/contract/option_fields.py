"""
`EngineOptions` as flat keys of a pydantic model.  Needs pydantic: not for the engine process.
"""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model

from runtime.contract.engine_options import OPTIONS, EngineOptions, Option


def with_engine_options(base: type[BaseModel]) -> type[BaseModel]:
    """
    Return *base* with a field for each option, as the runtime's config files name it.
    """
    known = {name: (_kind(each), _field(each, each.default)) for name, each in OPTIONS.items()}
    return create_model("WithEngineOptions", __base__=base, **known)  # type: ignore[call-overload, no-any-return]


def with_fleet_options(base: type[BaseModel], seconds: Any) -> type[BaseModel]:
    """
    Return *base* with a field for each option, as the fleet file names it.

    Args:
        seconds: Type of a duration with its unit, in place of float.
    """
    known = {
        each.fleet_key: (
            seconds if each.is_seconds else _kind(each),
            _field(each, each.fleet_default),
        )
        for each in OPTIONS.values()
        if each.rules.in_fleet_file
    }
    return create_model("WithFleetOptions", __base__=base, **known)  # type: ignore[call-overload, no-any-return]


def options_of(model: BaseModel) -> EngineOptions:
    """
    Return the options of a model that `with_engine_options` made.
    """
    return EngineOptions(**{name: getattr(model, name) for name in OPTIONS})


def fleet_options_of(model: BaseModel) -> EngineOptions:
    """
    Return the options of a model that `with_fleet_options` made.
    """
    known = [each for each in OPTIONS.values() if each.rules.in_fleet_file]
    return EngineOptions(**{each.name: getattr(model, each.fleet_key) for each in known})


def _field(each: Option, default: Any) -> Any:
    return Field(default=default, ge=each.rules.ge, le=each.rules.le)


def _kind(each: Option) -> Any:
    if not isinstance(each.default, tuple):
        return each.kind
    item: Any = get_args(each.kind)[0]
    if each.rules.check_item is not None:
        item = Annotated[item, AfterValidator(each.rules.check_item)]
    return Annotated[tuple[item, ...], BeforeValidator(_tuple)]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # YAML has no tuples
