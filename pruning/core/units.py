"""Bytes as people say them: read with a unit, and told in the unit in which they are short."""

import re

UNITS = {"B": 1, "KB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
"""Units of memory in bytes."""


def byte_count(value: float | str) -> float:
    """Return a number of bytes that may be told with a unit.

    >>> byte_count("512KiB"), byte_count("1.5 MB"), byte_count(300)
    (524288.0, 1500000.0, 300.0)

    Raises:
        ValueError: If it is none.
    """
    match = re.fullmatch(r"\s*([0-9.eE+]+?)\s*([A-Za-z]*)\s*", str(value))
    units = {name.lower(): size for name, size in UNITS.items()}
    try:
        if match is None:
            raise ValueError
        return float(match[1]) * units[(match[2] or "B").lower()]
    except (KeyError, ValueError):
        raise ValueError(
            f"Expected bytes, a number alone or with a unit of {list(UNITS)}, such as 512KiB, got {value!r}."
        ) from None


def in_bytes(count: float) -> str:
    """Return a number of bytes in the unit in which it is short.

    >>> in_bytes(300), in_bytes(524288), in_bytes(7_243_200)
    ('300 B', '512 KiB', '6.91 MiB')
    """
    size, unit = next(
        ((2**power, name) for power, name in ((20, "MiB"), (10, "KiB")) if abs(count) >= 2**power), (1, "B")
    )
    value = count / size
    return f"{value:.0f} {unit}" if value >= 100 or value == round(value) else f"{value:.3g} {unit}"
