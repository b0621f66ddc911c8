"""How operators become kernel calls: one module a family, each with `LOWERS`, functions by (domain, operator).

A function emits what computes a step and returns True, or emits nothing and returns False. It may rely on this: no
operand or result is empty, and shapes and types of all of them are known.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from pumice_cpu.runtime.compiler import Lower


@cache
def table() -> dict[tuple[str, str], Lower]:
    """All of them."""
    found: dict[tuple[str, str], Lower] = {}
    for module in pkgutil.iter_modules(__path__):
        found.update(importlib.import_module(f"{__name__}.{module.name}").LOWERS)
    return found
