"""Interpret @triton.jit kernels on CPU in a process that also compiles them.

    interp(kernel)[grid](...)         interpret one launch
    with interpreting(): run(...)     interpret every launch below: of a skeleton's launch helper, of an emitted package

Import this before any module with kernels, and leave TRITON_INTERPRET unset: then every kernel, and tl.sum, tl.max ...,
is a JITFunction, which compiles; Triton 3.6 and 3.9 lack two things to interpret one:

1. A helper called by an interpreted kernel is a JITFunction too and refuses to be called. Here it is interpreted.
2. Calling an interpreted helper patches triton.language and leaves it so, and the next compilation fails. Here every
   patch is undone; and made once a launch, not once a call, which would take most of the time.

One launch at a time: the interpreter keeps its state in module globals. Inside `interpreting` os.environ says
TRITON_INTERPRET=1, as code that asks whether kernels run on CPU expects, but @triton.jit still gives JITFunctions.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterOptions
from triton.runtime.jit import JITFunction

from tests.kernels import bf16shim, quick

_lock = threading.RLock()
_launches = 0  # interpreted launches under way
_redirect = 0
_language = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # a function that sees all there is to patch
_compiled_call, _compiled_run = JITFunction.__call__, JITFunction.run
_patch_tensor, _patch_all = interpreter._patch_lang_tensor, interpreter._patch_lang

bf16shim.install()
quick.install()
interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)  # asserts in debug mode alone
triton.knobs.runtime.interpret = False  # stands above the environment variable


def _interpreted(kernel: Any) -> Any:
    if isinstance(kernel, InterpretedFunction):
        return kernel
    if not hasattr(kernel, "_interpreted"):  # on the kernel: a table would need its hash, which walks its dependencies
        kernel._interpreted = InterpretedFunction(kernel.fn)
    return kernel._interpreted


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A call of a JITFunction: by an interpreted kernel, interpreted."""
    call = _interpreted(self).rewrite() if _launches else _compiled_call.__get__(self)
    return call(*args, **kwargs)


def _run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
    """A launch of a JITFunction: inside `interpreting`, interpreted."""
    if not _redirect:
        return _compiled_run(self, *args, grid=grid, warmup=warmup, **kwargs)
    return interp(self)[grid](*args, **kwargs)


def _patch_tensor_too(tensor: Any, scope: Any) -> None:
    """As Triton, but a tensor of one element is a loop bound: NumPy makes no integer of an array, as 3.6 would."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def _patch_once(function: Any) -> Any:
    """As Triton, but nothing where all is patched."""
    return interpreter._LangPatchScope() if _launches else _patch_all(function)


interpreter._patch_lang_tensor = _patch_tensor_too
interpreter._patch_lang = _patch_once
JITFunction.__call__ = _call  # type: ignore[method-assign]
JITFunction.run = _run  # type: ignore[method-assign]


class interp:
    """A kernel, to be launched in the interpreter: interp(kernel)[grid](*args, **constexprs)."""

    def __init__(self, kernel: Any):
        self.kernel = _interpreted(kernel)

    def __getitem__(self, grid: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            global _launches
            with _lock, np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice")  # the maximum of a row that does not exist
                scope = interpreter._patch_lang(_language)
                _launches += 1
                try:
                    return self.kernel[grid](*args, **kwargs)
                finally:
                    _launches -= 1
                    scope.restore()

        return run


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Every kernel launch in this block is interpreted."""
    global _redirect
    before = os.environ.get("TRITON_INTERPRET")
    with _lock:
        _redirect += 1
        os.environ["TRITON_INTERPRET"] = "1"
        try:
            yield
        finally:
            _redirect -= 1
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before
