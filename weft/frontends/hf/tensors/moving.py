"""Weights between a checkpoint and a module: rows at a time, each copied once, straight to where it belongs."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from weft.errors import BackendError
from weft.frontends.hf.tensors.checkpoint import INDEX, SINGLE, Checkpoint
from weft.frontends.hf.tensors.matching import CheckpointError, Match
from weft.frontends.hf.tensors.weights import RowRun, Tensor

if TYPE_CHECKING:
    import torch

AT_ONCE = 1 << 23
"""Bytes that are read in one piece. A mapped file counts as memory until it is closed, so each opens it anew."""
OWN = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""What of a checkpoint that was there before would be taken for part of this one."""
Parameters = Mapping[str, "torch.Tensor"]


def fill(parameters: Parameters, checkpoint: Checkpoint, match: Match) -> None:
    """Copy every tensor of a checkpoint into the parameters that it holds.

    parameters: contiguous, by logical name, in any float dtype, on any device."""
    for tensor, name in match.sources:
        width = _width(tensor.shape, 8)
        for runs in _batches(tensor, max(1, AT_ONCE // width)):
            with checkpoint.reading(name) as rows:
                for run in runs:
                    part = rows(run.begin, run.end)
                    _own(parameters, tensor, run).copy_(_theirs(part, tensor, run))
                    del part
    for copy, name in match.copies:
        if not _equal(checkpoint, copy, name):
            raise CheckpointError(checkpoint.folder, [f"{copy} and {name} are tied by the config, and not equal"])


def write(
    folder: str, parameters: Parameters, tensors: Mapping[str, Tensor], config: Mapping[str, Any], most: int
) -> list[str]:
    """The parameters as safetensors of at most `most` bytes (one tensor may be more), the index if they are several,
    and config.json last; gives the names of the files. One shard is in memory at a time, and none is seen half."""
    try:
        from safetensors.torch import save_file  # an extra, which nothing else of weft needs
    except ModuleNotFoundError:
        raise BackendError("writing safetensors takes the package of that name: pip install 'weft[hf]'") from None

    shards = _sharded(parameters, tensors, most)
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]  # fmt: skip
    for name, shard in zip(names, shards):
        held = {t.name: _gathered(parameters, t) for t in shard}
        _placed(folder, name, lambda beside, held=held: save_file(held, beside, metadata={"format": "pt"}))
        del held
    if len(shards) > 1:
        total = sum(_bytes(parameters, t) for t in tensors.values())
        named = {t.name: name for name, shard in zip(names, shards) for t in shard}
        _text(folder, INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(named.items()))})
        names.append(INDEX)
    _text(folder, "config.json", config)
    for old in os.listdir(folder):
        if OWN.fullmatch(old) and old not in names:
            os.unlink(os.path.join(folder, old))
    return [*names, "config.json"]


def _own(parameters: Parameters, tensor: Tensor, run: RowRun) -> torch.Tensor:
    """The rows of a parameter that a run holds, as the tensor lays them out."""
    whole = parameters[run.part.name]
    whole = whole if run.part.expert is None else whole[run.part.expert]
    laid = whole.view(run.part.shape)
    laid = laid.t() if tensor.turned else laid
    return laid[run.own : run.own + run.end - run.begin]


def _theirs(rows: torch.Tensor, tensor: Tensor, run: RowRun) -> torch.Tensor:
    """What of a tensor's rows belongs to the run's part."""
    if tensor.axis == 0:
        return rows
    stop = run.start + (run.part.size - 1) * run.step + 1
    return rows[(slice(None),) * tensor.axis + (slice(run.start, stop, run.step),)]


def _gathered(parameters: Parameters, tensor: Tensor) -> torch.Tensor:
    import torch  # torch is imported only where it is needed

    whole = torch.empty(tensor.shape, dtype=parameters[tensor.parts[0].name].dtype)
    for run in tensor.walk(tensor.shape[0]):
        _theirs(whole[run.begin : run.end], tensor, run).copy_(_own(parameters, tensor, run))
    return whole


def _batches(tensor: Tensor, most: int) -> Iterator[list[RowRun]]:
    """Runs that are read while a file is open: at most `most` rows."""
    held: list[RowRun] = []
    for run in tensor.walk(most):
        if held and sum(r.end - r.begin for r in held) + run.end - run.begin > most:
            yield held
            held = []
        held.append(run)
    yield held


def _equal(checkpoint: Checkpoint, a: str, b: str) -> bool:
    first, second = checkpoint.tensors[a], checkpoint.tensors[b]
    if first.shape != second.shape:
        return False
    step = max(1, AT_ONCE // _width(first.shape, 8))
    for begin in range(0, first.shape[0], step):
        end = min(first.shape[0], begin + step)
        with checkpoint.reading(a) as one, checkpoint.reading(b) as other:
            if not bool((one(begin, end) == other(begin, end)).all()):
                return False
    return True


def _width(shape: tuple[int, ...], size: int) -> int:
    """Bytes of a row."""
    count = size
    for n in shape[1:]:
        count *= n
    return count


def _bytes(parameters: Parameters, tensor: Tensor) -> int:
    return _width((1, *tensor.shape), parameters[tensor.parts[0].name].element_size())


def _sharded(parameters: Parameters, tensors: Mapping[str, Tensor], most: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    room = most
    for tensor in tensors.values():
        size = _bytes(parameters, tensor)
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(tensor)
        room -= size
    return shards


def _placed(folder: str, name: str, into: Any) -> None:
    """A file that `into` fills beside its place, and that then takes it."""
    beside = os.path.join(folder, f".weft-{os.urandom(6).hex()}")
    try:
        # a file of safetensors would be its writer's alone: this one has the rights that the umask gives
        fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(fd).st_mode
        os.close(fd)
        into(beside)
        os.chmod(beside, stat.S_IMODE(mode))
        os.replace(beside, os.path.join(folder, name))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)


def _text(folder: str, name: str, data: Mapping[str, Any]) -> None:
    def into(path: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    _placed(folder, name, into)
