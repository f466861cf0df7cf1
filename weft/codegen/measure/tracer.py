"""torch without its tracer, which measuring has no use for.

torch hides from torch.compile what runs under a mode and what says the shapes of an operator on meta, and to hide it
imports all of torch._dynamo: a tenth of a gigabyte, and a second of each process, for what is never traced."""

import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

NAME = "torch._dynamo"


@contextmanager
def untraced() -> Generator[None]:
    """While it is on, nothing but what asks for the tracer itself imports it."""
    if NAME in sys.modules:
        yield
        return
    absent = sys.modules[NAME] = _Absent(NAME)
    try:
        yield
    finally:
        absent.leave()


class _Absent(ModuleType):
    """Stands for the tracer until something of it but `disable` is asked for: then it is imported after all."""

    def leave(self) -> None:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]

    def disable(self, hidden: Callable[..., Any], *how: Any, **options: Any) -> Callable[..., Any]:
        """`hidden` as it is; hidden as torch does it once there is a tracer."""
        by: dict[ModuleType, Callable[..., Any]] = {}

        def run(*args: Any, **kwargs: Any) -> Any:
            tracer = sys.modules.get(NAME)
            if tracer is None or isinstance(tracer, _Absent):
                return hidden(*args, **kwargs)
            if tracer not in by:
                by[tracer] = tracer.disable(hidden, *how, **options)
            return by[tracer](*args, **kwargs)

        return run

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what any module is asked, by those who look at them all
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(NAME), name)
