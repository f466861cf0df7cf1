"""Functions that people call: what is wrong with the arguments is a TypeError with the way out."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from weft.frontends.suggest import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which suggests the nearest name for an unknown keyword, and takes only booleans for its flags."""
    parameters = inspect.signature(function).parameters
    flags = {name for name, p in parameters.items() if isinstance(p.default, bool)}

    @functools.wraps(function)
    def called(*args: P.args, **given: P.kwargs) -> R:
        for name in given:
            if name not in parameters:
                hint = did_you_mean(name, parameters, "it takes ", 20)
                raise TypeError(f"weft.{function.__name__} has no argument '{name}'; {hint}")
        for name, value in (*zip(parameters, args), *given.items()):
            if name in flags and not isinstance(value, bool):
                raise TypeError(f"weft.{function.__name__}: {name} is True or False, not {value!r}")
        return function(*args, **given)

    return called
