"""The tensors of a folder that transformers saved, read from its safetensors and nothing else.

    found = Checkpoint.open("folder")
    found.tensors["lm_head.weight"].shape
    with found.reading("lm_head.weight") as rows: rows(0, 10)   # a torch tensor

Everything in the folder is untrusted: no pickle is opened, a shard is a file of that folder by its plain name, and
names, shapes and dtypes are known before a byte is allocated for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from weft.errors import BackendError, FileError, UsageError
from weft.frontends.hf.tensors import mxfp4

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MOST_INDEX = 1 << 26
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file has it. dtype: torch's name of it, "" for one that is no float. packed: the
    tensors that it stands in, by name, where it is none of its own; see `mxfp4`."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    packed: tuple[tuple[str, Stored], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by their names in it."""

    folder: str
    tensors: Mapping[str, Stored]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Checkpoint:
        """Read the headers. UsageError where there is no checkpoint, FileError where a file is damaged, BackendError
        without the package safetensors."""
        folder = os.fspath(folder)
        shards = _shards(folder)
        tensors: dict[str, Stored] = {}
        for file, named in shards.items():
            path = os.path.join(folder, file)
            found = _header(path)
            if named is not None and (lost := sorted(named - set(found))):
                raise FileError(path, f"has no {_listed(lost)}, which {INDEX} says it holds")
            if named is not None and (odd := sorted(set(found) - named)):
                raise FileError(path, f"holds {_listed(odd)}, of which {INDEX} says nothing")
            tensors |= found
        return cls(folder, _together(tensors))

    @contextmanager
    def reading(self, name: str) -> Generator[Callable[[int, int], Any]]:
        """A function from the first row and the row after the last to those rows, as a tensor that lives no longer
        than this block: what was read is a mapped file until it is closed."""
        stored = self.tensors[name]
        if stored.packed:
            with ExitStack() as files:
                opened = [files.enter_context(_opened(each.file)).get_slice(own) for own, each in stored.packed]
                yield lambda begin, end: mxfp4.unpacked(*(part[begin:end] for part in opened))
            return
        with _opened(stored.file) as file:
            part = file.get_slice(name)
            yield lambda begin, end: part[begin:end]


def _together(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors, those that stand in two as the one that they are."""
    packed = mxfp4.pairs(tensors)
    names = [tuple(stem + suffix for suffix in mxfp4.SUFFIXES) for stem in packed]
    found = {name: x for name, x in tensors.items() if not any(name in own for own in names)}
    for own, (stem, parts) in zip(names, packed.items()):
        found[stem] = Stored(parts[0].file, mxfp4.shape(parts[0]), "bfloat16", "MXFP4", tuple(zip(own, parts)))
    return found


def present(folder: str | os.PathLike[str]) -> None:
    """UsageError where there is no such folder."""
    folder = os.fspath(folder)
    if os.path.isfile(folder):
        raise UsageError(f"{folder} is a file: a checkpoint is the folder that holds config.json and its safetensors")
    if not os.path.isdir(folder):
        way = "weft downloads nothing: `hf download NAME --local-dir FOLDER` does"
        raise UsageError(f"{folder}: no such folder; {way}")


def _shards(folder: str) -> dict[str, set[str] | None]:
    """The safetensors of a folder, each with the names that the index gives it; None without one."""
    present(folder)
    there = lambda name: os.path.exists(os.path.join(folder, name))  # noqa: E731
    if there(INDEX):
        return _index(os.path.join(folder, INDEX))
    if there(SINGLE):
        return {SINGLE: None}
    if old := next((name for name in PICKLES if there(name)), None):
        way = "save it as safetensors where you trust it: AutoModel.from_pretrained(folder).save_pretrained(other)"
        raise UsageError(f"{folder} holds {old}, a pickle, which can run anything and is not opened; {way}")
    raise UsageError(f"{folder} holds no {SINGLE} and no {INDEX}")


def _index(path: str) -> dict[str, set[str] | None]:
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_INDEX + 1)
        named = json.loads(raw)["weight_map"] if len(raw) <= MOST_INDEX else None
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        named = None
    if not isinstance(named, dict) or not named:
        raise FileError(path, "is no index of safetensors: no map of names to files under weight_map")
    shards: dict[str, set[str] | None] = {}
    for name, file in named.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and file.endswith(".safetensors")
        if not plain or "\\" in file or "\0" in file:
            raise FileError(
                path, f"{name[:80]!r} lies in {str(file)[:80]!r}, which is no safetensors file of this folder"
            )
        held = shards.setdefault(file, set())
        assert held is not None
        held.add(name)
    return shards


def _header(path: str) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  a handle, not a map
            part = file.get_slice(name)
            kind = str(part.get_dtype())
            found[name] = Stored(path, tuple(part.get_shape()), DTYPES.get(kind, ""), kind)
    return found


@contextmanager
def _opened(path: str) -> Generator[Any]:
    try:
        from safetensors import SafetensorError, safe_open  # an extra, which nothing else of weft needs
    except ModuleNotFoundError:
        raise BackendError("reading safetensors takes the package of that name: pip install 'weft[hf]'") from None

    if not os.path.isfile(path):
        raise FileError(path, "no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        if _points(path):
            raise FileError(path, "is a pointer of Git LFS, not the weights: `git lfs pull` brings them") from None
        raise FileError(path, f"is no safetensors file, or is cut short: {str(error)[:120]}") from None
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read") from None


def _points(path: str) -> bool:
    """Is a file what stands for another in a clone without its large files?"""
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:80] for name in names[:3]) + more
