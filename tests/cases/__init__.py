"""The registry: every public layer and loss with its cases, one family a file.

A family's module defines `CASES` (of `Case`) or `LOSS_CASES` (of `LossCase`); it is found by being here.
"""

import importlib
import pkgutil

MODULES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
CASES = [case for module in MODULES for case in getattr(module, "CASES", [])]
LOSS_CASES = [case for module in MODULES for case in getattr(module, "LOSS_CASES", [])]
