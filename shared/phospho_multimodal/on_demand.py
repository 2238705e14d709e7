"""Exports and modules that are loaded when they are first asked for; a lock for what is made then.

An import should cost what everybody needs. What takes long to load and only a call needs, half of
the core and most of an adapter, stands in its module's globals as before, and is loaded when it is
used. Type checkers and the import contracts see the plain import beside it:

    if TYPE_CHECKING:
        from phospho_multimodal import tool_replies
    else:
        tool_replies = ModuleOnDemand("phospho_multimodal.tools.parsing")
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LockOfProcess", "ModuleOnDemand", "exports_on_demand"]


class LockOfProcess:
    """A lock of which each forked child has one of its own, for one that is never given up.

    That of an object which comes and goes is renewed by `processes.after_fork`, which an import of
    an adapter has no use for.
    """

    def __init__(self) -> None:
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.held = threading.Lock()


class ModuleOnDemand:
    """Stands for a module, which is loaded when something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._module is None:
            # Not looked up in `sys.modules`, which has it while another thread still loads it.
            self._module = import_module(self._name)
        return getattr(self._module, name)

    def __repr__(self) -> str:
        return f"<{self._name}, on demand>"


def exports_on_demand(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package (PEP 562).

    Args:
        package: Its name.
        modules: By name of an export: the module of the package that has it.

    Returns:
        The function; what it has found stays in the package.
    """

    def load(name: str) -> Any:
        if name not in modules:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=sys.modules[package])
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
