"""Record the launches that a wrapper makes, without running them: each as Triton would specialise it for a target.

with recording("sm_90", root) as launches:
    run(*tensors on "meta")
launches[0].signature, .constants, .attributes, .options, .grid
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from weft.autotune.workers.launches import KernelLaunch, encode, relative


def gpu(target: str) -> Any:
    """Triton's name of "sm_90"."""
    from triton.backends.compiler import GPUTarget  # a GPU's compiler, which not every machine has

    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


@contextmanager
def recording(target: str, root: str) -> Generator[list[KernelLaunch]]:
    """Launches inside are recorded, not run. root: the package of kernels, see `weft.autotune.workers.launches`."""
    from triton.compiler.compiler import make_backend  # a GPU's compiler, which not every machine has
    from triton.runtime.jit import JITFunction

    backend, launches, run = make_backend(gpu(target)), list[KernelLaunch](), JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(launch(self, backend, root, args, kwargs, grid))

    JITFunction.run = record  # pyright: ignore
    try:
        yield launches
    finally:
        JITFunction.run = run


def launch(
    kernel: Any, backend: Any, root: str, args: tuple[Any, ...], kwargs: dict[str, Any], grid: Any
) -> KernelLaunch:
    """One launch, specialised by Triton's own rules: an integer 1 is a constant, what 16 divides is said to be so."""
    from triton.runtime.jit import create_function_from_signature  # a GPU's compiler, which not every machine has

    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, **kwargs, debug=bool(kernel.debug))
    _, signature, constants, attributes = kernel._pack_args(backend, kwargs, bound, specialization, options)
    if callable(grid):
        grid = grid(bound)
    given = {k: v for k, v in options.items() if k not in bound and v is not None and v is not False}
    if "enable_fp_fusion" in options:
        given["enable_fp_fusion"] = bool(options["enable_fp_fusion"])
    sizes = {n: v for n, v in bound.items() if type(v) is int and signature[n] in ("i32", "i64")}
    return KernelLaunch(
        relative(kernel.fn.__module__, root), kernel.fn.__qualname__, signature,
        tuple((place, encode(value, root)) for place, value in constants.items()),
        tuple(attributes.items()), given,
        tuple(int(g) for g in (*grid, 1, 1)[:3]), sizes,
    )  # fmt: skip
