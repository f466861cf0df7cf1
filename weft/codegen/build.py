"""From a plan to a package: its files, its module, and its verification."""

import atexit
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.codegen.package.disk import load, write
from weft.codegen.package.emit import files
from weft.codegen.package.manifest import changed
from weft.codegen.package.reading import CONFIGS, blaming
from weft.codegen.plan.as_json import document
from weft.codegen.plan.planner import Planned
from weft.errors import BackendError, UsageError
from weft.ir.program import Program
from weft.passes.blocks import key

if TYPE_CHECKING:
    from torch import nn

    from weft.codegen.check.verify import Verified


def files_of(planned: Planned) -> dict[str, str]:
    """The files of the package that a plan describes."""
    layers: dict[str, list[str]] = {}
    for layer in planned.layers:
        layers.setdefault(planned.blocks[layer.block].name, []).append(layer.mode)
    made = {key(b.block.site): b.made for b in planned.blocks}
    return files(planned.model, made, planned.decoding, layers, document(planned), planned.kernels)


def temporary(files: Mapping[str, str]) -> Path:
    """The files in a folder that lives as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="weft-")
    atexit.register(folder.cleanup)
    return write(files, Path(folder.name) / "package")


def module_of(
    folder: str | os.PathLike[str], device: Any = None, generator: Any = 0, wrapped: Mapping[str, Any] | None = None
) -> "nn.Module":
    """The model of a package, its parameters drawn on `device` (on "meta" nothing is allocated).

    wrapped: the modules of opaque blocks, by key."""
    package = load(folder)
    device = device_of(device)
    with blaming(folder):
        module = package.Model(device=device, generator=generator)
        return package.install(module, wrapped) if wrapped else module


def device_of(device: Any) -> Any:
    """What torch takes. Raises UsageError for no device, BackendError for one that is not there."""
    import torch  # torch is imported only where it is needed

    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        known = "a device is 'cpu', 'meta', 'cuda' or 'cuda:1'"
        raise UsageError(f"{device!r:.60} is no device of torch; {known}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"there is no device {found}; torch sees {torch.cuda.device_count()} GPUs")
    return found


def verified(
    program: Program, folder: str | os.PathLike[str], wrapped: Mapping[str, Any] | None = None, kernels: bool = True
) -> "Verified":
    """Compare the package in `folder` with the reference interpreter on `program`; its kernels too, if `kernels`.

    wrapped: the modules of opaque blocks, by key."""
    found = _compared(program, folder, wrapped, kernels)
    if not found.ok and (odd := [name for name in changed(Path(folder)) if name != CONFIGS[0]]):
        found.notes.append(f"changed since weft wrote them: {', '.join(odd[:10])}")
    return found


def _compared(
    program: Program, folder: str | os.PathLike[str], wrapped: Mapping[str, Any] | None, kernels: bool
) -> "Verified":
    from weft.codegen.check.kernels import Running  # torch is imported only where it is needed

    if not kernels:
        return _verified(program, folder, wrapped)
    if wrapped:
        found = _verified(program, folder, wrapped)
        found.notes.append("kernels were not run: they run in another process, which has no wrapped modules")
        return found
    with Running(program, folder) as running:
        found = _verified(program, folder, wrapped)
        running.into(found)
    return found


def _verified(program: Program, folder: str | os.PathLike[str], wrapped: Mapping[str, Any] | None) -> "Verified":
    """The torch path."""
    from weft.codegen.check.one_dtype import uniform  # torch is imported only where it is needed
    from weft.codegen.check.verify import verify

    with blaming(folder):
        return verify(program, lambda: module_of(folder, wrapped=wrapped), not uniform(program), wrapped=wrapped)
