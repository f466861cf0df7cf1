"""How much shared memory a kernel takes, without LLVM and ptxas: Triton's own passes down to their allocation.

0.1 CPU-seconds instead of one, and the same number as a full compilation gives. These are private functions of Triton:
`KNOWN` lists the releases for which tests pin the two numbers to each other; on others `shared` gives None, and the
gate leaves the question to the full compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weft.autotune.workers.capture import gpu

KNOWN = ((3, 6), (3, 9))
"""Releases of Triton on which the stages below are those of the compiler."""


def version() -> tuple[int, int]:
    """Triton's, as (3, 9)."""
    import triton  # a GPU's compiler, which not every machine has

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def known() -> bool:
    """Whether this Triton's stages are known."""
    return version() in KNOWN


def shared(source: Any, target: str, options: Mapping[str, Any]) -> int | None:
    """Bytes of shared memory of a block of a source for "sm_90"; None on a Triton whose stages are not known.

    Raises what Triton raises where the kernel cannot be lowered."""
    if not known():
        return None
    from triton._C.libtriton import ir, nvidia, passes  # a GPU's compiler, which not every machine has
    from triton.backends.nvidia.compiler import get_ptx_version_from_options
    from triton.compiler.compiler import make_backend

    on = gpu(target)
    backend: Any = make_backend(on)
    parsed = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generate, modules = backend.get_codegen_implementation(parsed), backend.get_module_map()
    module = source.make_ir(on, parsed, generate, modules, context)
    metadata: dict[str, Any] = {}
    module = backend.make_ttir(module, metadata, parsed, on.arch)
    module = backend.make_ttgir(module, metadata, parsed, on.arch)
    manager = ir.pass_manager(module.context)
    passes.ttgpuir.add_combine_tensor_select_and_if(manager)
    passes.ttgpuir.add_allocate_warp_groups(manager, *([False] if version() >= (3, 9) else []))
    passes.convert.add_scf_to_cf(manager)
    passes.gluon.add_inliner(manager)
    ptx = get_ptx_version_from_options(parsed, on.arch)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, on.arch, ptx)
    manager.run(module, "shared")
    return module.get_int_attr("ttg.shared")
