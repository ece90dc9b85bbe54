"""Every table's schema by name, wherever in the code it stands."""

import pkgutil
from importlib import import_module

import pruning
from pruning.core.tables import Table
from tasks.common.job import TIMING

MODULES = [info.name for info in pkgutil.walk_packages(pruning.__path__, "pruning.") if info.name.endswith(".schemas")]
FOUND = [value for module in MODULES for value in vars(import_module(module)).values() if isinstance(value, Table)]
FORMS = (TIMING, *FOUND)
TABLES = {schema.name: schema for schema in reversed(FORMS)}  # of two forms the usual one, the first
