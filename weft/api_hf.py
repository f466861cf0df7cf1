"""Hugging Face in and out, as functions: part of `weft.api`, which has them too. Imports nothing before it needs it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft import outputs
from weft.calls import public
from weft.errors import Place, SpecError, UsageError
from weft.planning import open_spec, program
from weft.units import bytes_of

if TYPE_CHECKING:
    from weft.frontends.hf.imported import ImportedSpec
    from weft.frontends.hf.tensors.weights import Tensor

RECORD = "hf_config"
"""The attribute of a loaded module that holds the config it was loaded by."""


@public
def import_hf(config: str | os.PathLike[str]) -> ImportedSpec:
    """The spec of a Hugging Face config.json, or of the folder of one: `.text` is the file, `.notes` what no spec says
    of it. Raises SpecError with everything wrong in it, UsageError where there is none. Imports no torch."""
    from weft.frontends.hf.imported import import_config  # only when it is asked for: every verb imports this file

    found = import_config(config)
    try:
        program(open_spec(found.spec), False)
    except SpecError as error:
        here = Place(os.fspath(config), 1, 1)
        told = [replace(p, message=f"in the spec of this config, {p.message}", place=here) for p in error.problems]
        raise SpecError(told) from None
    return found


def load_hf(
    folder: str | os.PathLike[str],
    compiled: Callable[..., Any],
    spec: Any,
    dtype: Any,
    device: Any,
    given: Mapping[str, Any],
) -> Any:
    """See `weft.load_hf`. compiled: `weft.compile`, which takes what is `given`."""
    # only when it is asked for: every verb imports this file
    from weft.frontends.hf.imported import import_config
    from weft.frontends.hf.tensors.checkpoint import Checkpoint, present
    from weft.frontends.hf.tensors.matching import match
    from weft.frontends.hf.tensors.moving import fill

    present(folder)
    device = _device(device)
    imported = import_config(folder)
    checkpoint = Checkpoint.open(folder)
    wanted = tensors_of(imported, len(checkpoint.tensors))
    matched = match(checkpoint, imported.family, imported.architecture, wanted)
    module = compiled(imported.spec if spec is None else spec, device="meta", **given)
    _same(wanted, module)
    learned = {n for n, _ in module.named_parameters()}
    stored = {checkpoint.tensors[name].dtype for t, name in matched.sources if any(p.name in learned for p in t.parts)}
    module.to(_dtype(dtype, stored, module))
    module.to_empty(device=device)
    fill(_weights(module), checkpoint, matched)
    setattr(module, RECORD, dict(imported.config))
    return module.eval()


@public
def save_hf(
    module: Any,
    folder: str | os.PathLike[str],
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    max_shard_size: str | int = "5GB",
    force: bool = False,
) -> list[str]:
    """Write a module's weights, bit for bit, and its config.json as transformers reads them; gives the paths written.

    config: the values of a config.json, its path or its folder; by default what `weft.load_hf` left in the module.
    max_shard_size: the weights are several files where they are more. force: overwrite a checkpoint that is there.
    Raises SpecError for a config that no spec says, UsageError where the module's parameters are not those it names."""
    # only when it is asked for: every verb imports this file
    from weft.frontends.hf.imported import import_config, import_values
    from weft.frontends.hf.tensors.moving import write

    parameters, most = _weights(module), bytes_of(max_shard_size)
    if most < 1:
        raise UsageError("max_shard_size is above 0, such as '5GB'")
    if nowhere := next((n for n, x in parameters.items() if x.is_meta), ""):
        raise UsageError(f"{nowhere} is on device meta, where no weights are; weft.load_hf or module.to_empty puts it")
    config = getattr(module, RECORD, None) if config is None else config
    if config is None:
        raise UsageError(
            "which model of transformers is it? weft.load_hf leaves its config in a module; else config=..."
        )
    imported = import_values(config) if isinstance(config, Mapping) else import_config(config)
    wanted = tensors_of(imported)
    _same(wanted, module)
    with outputs.refusing(folder):
        outputs.tried_folder(folder)
        if not force and (held := [n for n in _held(folder) if n == "config.json" or n.endswith(".safetensors")]):
            raise UsageError(f"{folder} holds {held[0]}; force=True overwrites it")
        os.makedirs(folder, exist_ok=True)
        names = write(os.fspath(folder), parameters, wanted, _config(imported, parameters), most)
    return [str(Path(folder) / name) for name in names]


def _weights(module: Any) -> dict[str, Any]:
    """What a checkpoint holds of a module: its parameters, and buffers that no gradient moves."""
    import torch  # torch is imported only where it is needed

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"a module is what weft.load_hf or weft.compile gives, not {type(module).__name__}")
    return {n: x.detach() for n, x in (*module.named_parameters(), *module.named_buffers())}


def _held(folder: str | os.PathLike[str]) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def tensors_of(imported: ImportedSpec, held: int | None = None) -> dict[str, Tensor]:
    """Every tensor that the model of a config is made of; a parameter that no row names is a bug.

    held: how many there are. UsageError where the config asks for many times that, before each is thought of."""
    from weft.frontends.hf.tensors.weights import (  # only when it is asked for: every verb imports this file
        asked,
        tensors,
    )

    rows = (*imported.family.rows, *imported.architecture.rows)
    made = program(open_spec(imported.spec), False)
    if held is not None and (many := asked(rows, made)) > 4 * held + 64:
        raise UsageError(f"the config asks for {many:,} tensors, and the folder holds {held:,}")
    found, unnamed = tensors(rows, made, imported.values)
    assert not unnamed, f"the table of {imported.family.name} has no row for {', '.join(unnamed)}"
    return found


def _same(wanted: Mapping[str, Tensor], module: Any) -> None:
    """UsageError where a module's parameters are not those of the config."""
    sizes: dict[str, int] = {}
    for tensor in wanted.values():
        for part in tensor.parts:
            count = 1
            for n in part.shape:
                count *= n
            sizes[part.name] = sizes.get(part.name, 0) + count
    own = {n: x.numel() for n, x in _weights(module).items()}
    wrong = [n for n in {**sizes, **own} if sizes.get(n) != own.get(n)]
    if wrong:
        few = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        way = "sizes of weights come from the config; adapters and parametrizations are merged first"
        raise UsageError(f"the module's parameters are not those of the config: {few}; {way}")


def _config(imported: ImportedSpec, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the class and the dtype that the weights are of."""
    made = dict(imported.config) | {"architectures": [imported.values["architecture"]]}
    made.pop("quantization_config", None)  # what is written is not
    kinds = {str(p.dtype).removeprefix("torch.") for p in parameters.values()}
    key = "torch_dtype" if "torch_dtype" in made else "dtype"
    return made | ({key: kinds.pop()} if len(kinds) == 1 else {})


def _dtype(dtype: Any, stored: Iterable[str], module: Any) -> Any:
    """The dtype asked for, else the checkpoint's, of several the one that holds them all. None leaves the module's own:
    those of a spec that has its own policy."""
    import torch  # torch is imported only where it is needed

    if dtype is None:
        if any(p.dtype != torch.float32 for p in module.parameters()):
            return None
        return functools.reduce(torch.promote_types, [getattr(torch, name) for name in sorted(stored)])
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"dtype is a floating dtype of torch, such as 'bfloat16', not {dtype!r:.60}")
    return found


def _device(device: Any) -> Any:
    from weft.codegen.build import device_of  # only when it is asked for: every verb imports this file

    found = device_of(device) or "cpu"
    if str(found) == "meta":
        raise UsageError("weights have to be somewhere, and device='meta' is nowhere; weft.compile makes such a module")
    return found
