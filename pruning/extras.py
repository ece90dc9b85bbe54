"""Packages that the library runs without: imported when needed, and named with their extra if they are missing."""

from importlib import import_module
from typing import Any

DISTRIBUTION = "neuron-pruning"
"""What the library is called where packages are installed from."""


def needed(module: str, extra: str) -> Any:
    """Return a module of a package that one of the library's extras brings.

    >>> needed("pandas_of_nobody", "plots")
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: Expected the package pandas_of_nobody, got none; pip install 'neuron-pruning[plots]'.

    Args:
        module: The module's whole name.
        extra: The extra that has its package.

    Raises:
        ModuleNotFoundError: If the package is missing, in a sentence that names the extra.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, and lacks one of its own
        raise ModuleNotFoundError(
            f"Expected the package {package}, got none; pip install '{DISTRIBUTION}[{extra}]'.", name=error.name
        ) from error
