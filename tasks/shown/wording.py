"""What a field of params.yaml may hold, in words, and the one sentence on a value that is something else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

Schema = Mapping[str, Any]
"""The JSON schema of a field, as pydantic gives it."""
LONGEST = 80
"""Characters of a value that a sentence repeats."""
UNKNOWN = ("extra_forbidden", "invalid_key")
"""Pydantic's names for the mistake of a name that stands nowhere."""


def sentence(errors: Sequence[Any], values: Any, schema: Schema, file: str = "params.yaml") -> str:
    """Return what was wrong with values as one sentence on the first mistake.

    Whatever kind of mistake it is, the sentence says what the field may hold, which its schema knows: so there is one
    wording for every kind of error that pydantic has, and none of its own words are shown.

    Args:
        errors: Pydantic's errors.
        values: What was checked.
        schema: The JSON schema of what was expected.
        file: Where the values stand.
    """
    error = _most_telling(errors)
    loc = [part for part in error["loc"] if part != "[key]"]
    if error["type"] == "value_error":
        return f"{str(error['ctx']['error']).rstrip('.')} ({file})."
    if error["type"] in UNKNOWN:
        holder = _at(loc[:-1], values, schema)[1]
        known = [name for kind in _kinds(holder) for name in kind.get("properties", {})]
        return f"Unknown parameter {_name(loc)!r} in {file}; known here: {known}.{nearest(str(loc[-1]), known)}"
    if error["type"] == "missing":
        _, wanted, _ = _at(loc, values, schema)
        return f"Expected parameter {_name(loc)!r} in {file}, got none; it is to be {described(wanted)}."
    if error["loc"][-1:] == ("[key]",):
        place, holder, _ = _at(loc[:-1], values, schema)
        choices = [name for kind in _kinds(holder) for name in kind.get("propertyNames", {}).get("enum", [])]
        names = described({"enum": choices}) if choices else holder.get("description", "text")
        hint = nearest(str(loc[-1]), choices)
        return f"Expected each name in {_name(place)} in {file} to be {names}, got {shown(loc[-1])}.{hint}"
    place, wanted, value = _at(loc, values, schema)
    hint = nearest(value, _choices(wanted)) if isinstance(value, str) else ""
    return f"Expected {_name(place) or file} in {file} to be {described(wanted)}, got {shown(value)}.{hint}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean '…'?` where a known word is close, else nothing.

    >>> nearest("hesian", ["hessian", "weights"])
    " Did you mean 'hessian'?"
    """
    lower = {each.lower(): each for each in known}
    close = get_close_matches(word.lower(), list(lower), n=1)
    return f" Did you mean {lower[close[0]]!r}?" if close else ""


def described(schema: Schema) -> str:
    """Return in words what a schema allows.

    >>> described({"type": "integer", "minimum": 1})
    'a whole number of at least 1'
    >>> described({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]})
    'a number above 0 and at most 1, or null'
    """
    if "description" in schema and schema.get("type") == "string":
        return str(schema["description"])
    if "anyOf" in schema:
        first, *others = map(described, _kinds(schema))
        return ", or ".join([first, *others])
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(repr, schema['enum']))}"
    return _described_kind(schema)


def _described_kind(schema: Schema) -> str:
    """Return in words what values of one type a schema allows."""
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return f"{'a whole number' if kind == 'integer' else 'a number'}{_bounds(schema)}"
    if kind == "array":
        least = "one or more entries" if schema.get("minItems") else "entries"
        return f"a list of {least}, each {described(_resolved(schema['items'], schema))}"
    if kind == "object" and "properties" in schema:
        return f"a section with {list(schema['properties'])}"
    if kind == "object":
        names = "one or more names" if schema.get("minProperties") else "names"
        return f"a mapping from {names} to values that are each {described(_resolved(_held(schema), schema))}"
    plain = {"string": "text", "boolean": "true or false", "null": "null"}
    return plain.get(str(kind), "another value")


def shown(value: Any) -> str:
    """Return a value as params.yaml has it, cut where it is long.

    >>> shown(float("inf")), shown(None), shown("much")
    ('.inf', 'null', "'much'")
    """
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if not isinstance(value, str | int | float | list | dict):
        return f"the {type(value).__name__} {value}"[:LONGEST]
    if isinstance(value, int) and abs(value) > 10**LONGEST:
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _most_telling(errors: Sequence[Any]) -> Any:
    """Return the first error; of several on one field the one farthest within; of a missing name its misspelling."""
    first = errors[0]
    if first["type"] == "missing":
        beside = [error for error in errors if error["type"] in UNKNOWN and error["loc"][:-1] == first["loc"][:-1]]
        hint = nearest(str(first["loc"][-1]), [str(error["loc"][-1]) for error in beside])
        return next((error for error in beside if hint and repr(str(error["loc"][-1])) in hint), first)
    same = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    return max(same, key=lambda error: len(error["loc"]))


def _at(loc: Sequence[Any], values: Any, schema: Schema) -> tuple[list[Any], Schema, Any]:
    """Return the place that the parts of an error's location lead to, its schema and the value there.

    Where a field may be of several kinds, pydantic puts the name of one among the parts. It is passed over, and the
    walk goes on only in a kind that the value is of; else the whole field is the place.
    """
    place, value, current, parts = list[Any](), values, _resolved(schema, schema), list(loc)
    while True:
        wanted = "object" if isinstance(value, Mapping) else "array" if isinstance(value, list) else "none"
        kinds = _kinds(current)
        if parts and sum(kind.get("type") != "null" for kind in kinds) > 1:
            parts.pop(0)
        fitting = [kind for kind in kinds if kind.get("type") == wanted]
        if not fitting or not parts:
            return place, current, value
        part = parts.pop(0)
        place.append(part)
        holder = fitting[0]
        inner = holder["items"] if wanted == "array" else holder.get("properties", {}).get(part) or _held(holder)
        current = _resolved(inner, holder)
        value = value[part] if not isinstance(value, Mapping) or part in value else None


def _resolved(schema: Schema, holder: Schema) -> Schema:
    """Return a schema with its reference followed; what references lead to goes along."""
    definitions = holder.get("$defs", {})
    reference = schema.get("$ref")
    resolved = definitions[reference.rpartition("/")[2]] if reference else schema
    return {**resolved, "$defs": definitions}


def _kinds(schema: Schema) -> list[Schema]:
    """Return the schemas among which a schema lets choose; itself where it is but one."""
    return [_resolved(part, schema) for part in schema.get("anyOf", [schema])]


def _held(schema: Schema) -> Schema:
    """Return the schema of the values of a mapping whose names are free."""
    further: Schema = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), {})
    return further


def _bounds(schema: Schema) -> str:
    """Return the bounds of a number in words."""
    words = {"exclusiveMinimum": "above", "minimum": "of at least", "exclusiveMaximum": "below", "maximum": "at most"}
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:.12g} to {schema['maximum']:.12g}"
    bounds = [f"{word} {schema[name]:.12g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _choices(schema: Schema) -> list[str]:
    """Return the words among which a schema lets choose."""
    kinds = _kinds(schema)
    return [*(word for kind in kinds for word in kind.get("enum", [])), *(k["const"] for k in kinds if "const" in k)]


def _name(place: Sequence[Any]) -> str:
    return ".".join(map(str, place))
