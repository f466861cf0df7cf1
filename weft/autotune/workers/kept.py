"""Compiled kernels as bytes, and back into Triton's cache: what one machine compiles, the same user's GPU machine runs.

A line of JSON, [{"key", "name", "metadata", "size"}, ...], then the cubins one after another. Only ever of the private
store (`weft.cache.binaries`): Triton believes whatever lies in its cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kept:
    """One kernel. key: of its folder in Triton's cache; metadata: Triton's own, as JSON text."""

    key: str
    name: str
    metadata: str
    cubin: bytes


def pack(kernels: Sequence[Kept]) -> bytes:
    """Kernels as bytes."""
    head = [{"key": k.key, "name": k.name, "metadata": k.metadata, "size": len(k.cubin)} for k in kernels]
    return json.dumps(head).encode() + b"\n" + b"".join(k.cubin for k in kernels)


def unpack(data: bytes) -> list[Kept]:
    """The kernels in bytes that `pack` made. ValueError for anything else."""
    head, _, rest = data.partition(b"\n")
    out: list[Kept] = []
    try:
        items = json.loads(head)
        if not isinstance(items, list):
            raise ValueError
        for item in items:
            key, name, size = str(item["key"]), str(item["name"]), int(item["size"])
            if not key.isalnum() or not name.isidentifier() or not 0 < size <= len(rest):
                raise ValueError
            out.append(Kept(key, name, str(item["metadata"]), rest[:size]))
            rest = rest[size:]
    except (TypeError, KeyError, ValueError):
        raise ValueError("these are no kept kernels") from None
    return out


def join(parts: Iterable[bytes]) -> bytes:
    """Several packed as one, each kernel once."""
    found = {k.key: k for part in parts for k in unpack(part)}
    return pack(list(found.values()))


def place(data: bytes, cache: str | Path) -> list[str]:
    """Put kept kernels where Triton, with TRITON_CACHE_DIR at `cache`, finds them instead of compiling; the folders."""
    out: list[str] = []
    for kernel in unpack(data):
        folder = Path(cache) / kernel.key
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = {f"{kernel.name}.json": kernel.metadata.encode(), f"{kernel.name}.cubin": kernel.cubin}
        for file, content in files.items():
            (folder / file).write_bytes(content)
        group = {"child_paths": {file: str(folder / file) for file in files}}
        (folder / f"__grp__{kernel.name}.json").write_text(json.dumps(group))
        out.append(str(folder))
    return out
