"""Bodies for targets that speak no CloudEvents: a text, or a table that becomes JSON, with `{data.size}` filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

_PLACE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PATH: Final = re.compile(r"[^.{}\s]+(?:\.[^.{}\s]+)*")
_Fill = Callable[[Mapping[str, Any]], Any]


class Template:
    """Places are `{ATTRIBUTE}` or `{data.KEY.KEY}`; `{{` and `}}` stand for braces.

    In a table a text that is nothing but one place becomes the value itself, a number for a number. Within a longer
    text values stand as they are where they are texts, else as JSON. What the event does not have is null, or nothing.
    """

    def __init__(self, body: str | Mapping[str, Any]) -> None:
        """Raises `ValueError` where a brace is left open or a place names nothing."""
        if isinstance(body, str):
            text = _text(body)
            self.fill: Callable[[Mapping[str, Any]], bytes] = lambda event: text(event).encode("utf-8", "surrogatepass")
        else:
            value = _value(body)
            self.fill = lambda event: msgspec.json.encode(value(event))


def lookup(event: Mapping[str, Any], path: str) -> Any:
    """The value at `data.size`; a number selects from a list. None where there is none."""
    at: Any = event
    for part in path.split("."):
        if isinstance(at, dict):
            at = at.get(part)
        elif isinstance(at, list) and part.isdecimal() and int(part) < len(at):
            at = at[int(part)]
        else:
            return None
    return at


def _value(template: Any) -> _Fill:
    if isinstance(template, str):
        whole = _PLACE.fullmatch(template)
        return _place(whole[1]) if whole and whole[1] is not None else _text(template)
    if isinstance(template, Mapping):
        fills = {key: _value(value) for key, value in template.items()}
        return lambda event: {key: fill(event) for key, fill in fills.items()}
    if isinstance(template, list):
        parts = [_value(one) for one in template]
        return lambda event: [fill(event) for fill in parts]
    return lambda _: template


def _text(template: str) -> _Fill:
    parts: list[str | _Fill] = []
    at = 0
    for found in _PLACE.finditer(template):
        parts += [template[at : found.start()], _part(found)]
        at = found.end()
    parts.append(template[at:])
    return lambda event: "".join(part if isinstance(part, str) else _shown(part(event)) for part in parts)


def _part(found: re.Match[str]) -> str | _Fill:
    if found[0] in {"{{", "}}"}:
        return found[0][0]
    if found[1] is None:
        raise ValueError(f'a single "{found[0]}"; write "{found[0] * 2}" for the character itself')
    return _place(found[1])


def _place(path: str) -> _Fill:
    if not _PATH.fullmatch(path):
        raise ValueError(f'"{{{path}}}" names nothing; write {{subject}} or {{data.size}}, and "{{{{" for a brace')
    return lambda event: lookup(event, path)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
