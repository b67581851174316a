"""What a settings class admits at each key: read from its annotations, so that a table is known from a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel, BeforeValidator, PlainValidator, WrapValidator
from pydantic.fields import FieldInfo

from headrace.toml_lines import KeyPath

_VALIDATORS = (BeforeValidator, PlainValidator, WrapValidator)


class Alternative(NamedTuple):
    """One member of a union. `parsed`: a validator of its own reads the value before the type counts."""

    type: Any
    arguments: tuple[Any, ...] = ()
    parsed: bool = False


def alternatives(annotation: Any, *, parsed: bool = False) -> Iterator[Alternative]:
    """The types that a value may have, `None` left out: TOML has none."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        parsed = parsed or any(isinstance(item, _VALIDATORS) for item in annotation.__metadata__)
        yield from alternatives(arguments[0], parsed=parsed)
    elif origin in {Union, UnionType}:
        for member in arguments:
            yield from alternatives(member, parsed=parsed)
    elif hasattr(annotation, "__value__"):  # type NAME = …
        yield from alternatives(annotation.__value__, parsed=parsed)
    elif annotation is not NoneType:
        yield Alternative(origin or annotation, arguments, parsed)


def is_model(type_: Any) -> TypeGuard[type[BaseModel]]:
    """Whether it is a class of settings, nested or not."""
    return isinstance(type_, type) and issubclass(type_, BaseModel)


def fields(model: type[BaseModel]) -> dict[str, Any]:
    """The annotation of each key as it is written in the file."""
    parsed = _parsed_by_methods(model)
    return {
        field.alias or name: _annotation(field, parsed=name in parsed or "*" in parsed)
        for name, field in model.model_fields.items()
    }


def child(annotation: Any, key: str | int) -> Any:
    """What may stand at a key or index of a value of this type; `Any` where the type does not say."""
    found = [one for alternative in alternatives(annotation) for one in _children(alternative, key)]
    return Union[tuple(found)] if found else Any  # noqa: UP007 - the members are known at run time only


def known_keys(annotation: Any, path: KeyPath) -> list[str]:
    """The keys of the table at `path` below a value of this type, as far as its classes name them."""
    for key in path:
        annotation = child(annotation, key)
    models = (each.type for each in alternatives(annotation) if is_model(each.type))
    return [name for model in models for name in fields(model)]


def is_table_of(annotation: Any, keys: Collection[str]) -> bool:
    """Whether the type takes a table with exactly these keys."""
    return any(_takes_keys(each, keys) for each in alternatives(annotation))


def takes_scalar(annotation: Any) -> bool:
    """Whether the type takes a text, number, boolean or time."""
    return any(
        not _is_free(each) and not _is_list(each) and not is_model(each.type) for each in alternatives(annotation)
    )


def plain_scalars(annotation: Any) -> frozenset[type]:
    """`int`, `float` and `bool` where the type takes those alone and no validator reads the value first; else empty."""
    every = [*alternatives(annotation)]
    if any(each.parsed or each.type not in {int, float, bool} for each in every):
        return frozenset()
    return frozenset(each.type for each in every)


def _annotation(field: FieldInfo, *, parsed: bool) -> Any:
    metadata = [*field.metadata, *([BeforeValidator(lambda value: value)] if parsed else [])]
    return Annotated[field.annotation, *metadata] if metadata else field.annotation


def _parsed_by_methods(model: type[BaseModel]) -> set[str]:
    """The fields, by their names in the class, that a `@field_validator` reads before their type counts."""
    decorators = model.__pydantic_decorators__.field_validators.values()
    return {name for each in decorators if each.info.mode != "after" for name in each.info.fields}


def _children(alternative: Alternative, key: str | int) -> list[Any]:
    if is_model(alternative.type):
        found = fields(alternative.type)
        return [found[key]] if key in found else []
    if _is_list(alternative):
        return _elements(alternative, key) if isinstance(key, int) else []
    if _is_mapping(alternative) and len(alternative.arguments) == 2:
        return [alternative.arguments[1]]
    return [Any] if _is_free(alternative) else []


def _elements(alternative: Alternative, index: int) -> list[Any]:
    arguments = alternative.arguments
    if alternative.type is tuple and arguments and arguments[-1] is not Ellipsis:
        return [arguments[index]] if index < len(arguments) else []
    return [arguments[0]] if arguments else [Any]


def _takes_keys(alternative: Alternative, keys: Collection[str]) -> bool:
    if is_model(alternative.type):
        return set(keys) <= set(fields(alternative.type))
    return _is_free(alternative)


def _is_free(alternative: Alternative) -> bool:
    """Takes any table, or something whose keys are not looked into."""
    kind = alternative.type
    return kind in {Any, object} or _is_mapping(alternative) or dataclasses.is_dataclass(kind) or is_typeddict(kind)


def _is_mapping(alternative: Alternative) -> bool:
    return isinstance(alternative.type, type) and issubclass(alternative.type, Mapping)


def _is_list(alternative: Alternative) -> bool:
    kind = alternative.type
    return isinstance(kind, type) and issubclass(kind, Sequence | AbstractSet) and not issubclass(kind, str | bytes)
