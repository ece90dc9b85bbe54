"""Measure, choose and physically remove the neurons of any network.

`__init__.pyi` lists the public names and their homes. Each is imported when it is first asked for, so that a stage
loads (and DVC makes it depend on) only the rooms that it uses.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
