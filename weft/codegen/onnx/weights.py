"""Weights put into an ONNX graph: those of a state_dict that torch saved, or of a safetensors file.

    found = Weights.read("w.safetensors", program)
    inside(model, found)                            as initializers of the graph itself
    beside(model, found, "weights.bin")             as initializers that point into a file; `found.write(fd)` fills it

Both kinds of file are untrusted: torch reads tensors and nothing else, and a safetensors header is checked here. Their
contents stay on disk until they are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from weft.cache.files import write_all
from weft.errors import FileError
from weft.ir.program import Program

if TYPE_CHECKING:
    import torch

MOST_INSIDE = (1 << 31) - (1 << 20)
"""Bytes of weights in one file: protobuf takes no message of 2 GiB."""
_ALIGN = 4096  # of a tensor in the file beside, for those who map it into memory
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_HEADER = 100 << 20
_SAFE = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_ONNX: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16",
         TensorProto.DOUBLE: "float64"}  # fmt: skip
Tensors = Mapping[str, Callable[[], "torch.Tensor"]]


@dataclass(frozen=True)
class Weights:
    """The parameters of a program by logical name, in its order."""

    path: Path
    tensors: Tensors

    @classmethod
    def read(cls, path: str | os.PathLike[str], program: Program) -> Weights:
        """The weights in a file. Raises FileError where it is damaged, or its names or shapes are not the program's."""
        path = Path(path)
        found = _bare(_safetensors(path) if path.suffix == ".safetensors" else _saved(path), program.logical_names())
        sizes, names = program.resolve(), program.logical_names()
        _same_names(path, found, names)
        for name, (param, _) in names.items():
            want, got = tuple(sizes[d] for d in param.dims), tuple(found[name]().shape)
            if want != got:
                raise FileError(path, f"{name} is {list(got)}, and the model's is {list(want)}")
        return cls(path, {name: found[name] for name in names})

    def data(self, name: str, element: int) -> bytes:
        """A tensor in the dtype of an ONNX element."""
        import torch  # torch is imported only where it is needed

        whole = self.tensors[name]().detach().to(getattr(torch, _ONNX[element])).contiguous()
        return whole.reshape(-1).view(torch.uint8).numpy().tobytes()

    def size(self, model: onnx.ModelProto) -> int:
        """Bytes of all of them in the dtypes of a graph's inputs."""
        return sum(_bytes(v) for v in model.graph.input if v.name in self.tensors)

    def write(self, fd: int, model: onnx.ModelProto) -> None:
        """The file beside a graph, tensor by tensor."""
        for v, offset, end in _places(model, self.tensors):
            write_all(fd, self.data(v.name, v.type.tensor_type.elem_type))
            write_all(fd, bytes(-end % _ALIGN))
            assert offset % _ALIGN == 0


def inside(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The model with its weights in it."""
    return _filled(model, weights, lambda t, v, _: setattr(t, "raw_data", weights.data(v.name, t.data_type)))


def beside(model: onnx.ModelProto, weights: Weights, location: str) -> onnx.ModelProto:
    """The model with its weights in the file `location` of the same folder."""
    places = {v.name: (offset, end) for v, offset, end in _places(model, weights.tensors)}

    def point(tensor: TensorProto, v: onnx.ValueInfoProto, _: object) -> None:
        offset, end = places[v.name]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", end - offset)):
            tensor.external_data.add(key=key, value=str(value))

    return _filled(model, weights, point)


def _filled(model: onnx.ModelProto, weights: Weights, fill: Callable[..., object]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    left = [v for v in made.graph.input if v.name not in weights.tensors]
    for v in made.graph.input:
        if v.name in weights.tensors:
            kind = v.type.tensor_type
            tensor = TensorProto(name=v.name, data_type=kind.elem_type, dims=[d.dim_value for d in kind.shape.dim])
            fill(tensor, v, made)
            made.graph.initializer.append(tensor)
    del made.graph.input[:]
    made.graph.input.extend(left)
    return made


def _places(model: onnx.ModelProto, names: Collection[str]) -> Iterator[tuple[onnx.ValueInfoProto, int, int]]:
    """Every weight with where it begins and ends in the file beside."""
    at = 0
    for v in model.graph.input:
        if v.name in names:
            yield v, at, at + _bytes(v)
            at += _bytes(v) + -_bytes(v) % _ALIGN


def _bytes(v: onnx.ValueInfoProto) -> int:
    kind = v.type.tensor_type
    width = {"float32": 4, "float64": 8}.get(_ONNX[kind.elem_type], 2)
    return width * prod(d.dim_value for d in kind.shape.dim)


# Files


def _saved(path: Path) -> Tensors:
    """What torch saved: a state_dict, or one under `state_dict` or `model`."""
    import torch  # torch is imported only where it is needed

    def loaded(mmap: bool) -> Any:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    try:
        try:
            found = loaded(True)
        except (RuntimeError, ValueError):  # a file of the older form
            found = loaded(False)
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read") from None
    except Exception as error:
        raise FileError(path, "not a state_dict that torch saved, nor a file ending in .safetensors") from error
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise FileError(path, "holds no state_dict: no mapping of names to tensors")
    return {str(name): (lambda x=x: x) for name, x in found.items()}


def _safetensors(path: Path) -> Tensors:
    """A safetensors file: the length of a JSON header in 8 bytes, the header, the tensors."""
    import torch  # torch is imported only where it is needed

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 0 < length <= min(_MOST_HEADER, size - 8):
                raise FileError(path, "not a safetensors file: its header is cut or too long")
            header = json.loads(file.read(length))
    except OSError as error:
        raise FileError(path, error.strerror or "cannot be read") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, "not a safetensors file: its header is not JSON") from None
    header = {k: v for k, v in header.items() if k != "__metadata__"} if isinstance(header, dict) else {}
    room = size - 8 - length
    out: dict[str, Callable[[], torch.Tensor]] = {}
    for name, about in header.items():
        try:
            dtype, shape = getattr(torch, _SAFE[about["dtype"]]), [int(n) for n in about["shape"]]
            begin, end = (int(n) for n in about["data_offsets"])
            count = prod(shape)
            if min(shape, default=0) < 0 or not 0 <= begin <= end <= room or end - begin != count * dtype.itemsize:
                raise ValueError
        except (LookupError, TypeError, ValueError, AttributeError):
            raise FileError(path, f"not a safetensors file: {name[:60]} has no dtype, shape and place in it") from None

        def tensor(at: int = 8 + length + begin, of: Any = dtype, count: int = count, shape: Any = shape) -> Any:
            if not count:
                return torch.empty(shape, dtype=of)
            mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            return mapped[at : at + count * of.itemsize].clone().view(of).reshape(shape)

        out[name] = tensor
    return out


def _bare(found: Tensors, names: Collection[str]) -> Tensors:
    """Without what wrappers put before every name: DistributedDataParallel, torch.compile."""
    for prefix in _PREFIXES:
        if found and not set(names) & set(found) and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): x for name, x in found.items()}
    return found


def _same_names(path: Path, found: Collection[str], names: Collection[str]) -> None:
    missing = [n for n in names if n not in found]
    unknown = [n for n in found if n not in names]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        near = get_close_matches(missing[0], unknown, 1) or unknown[:1]
        raise FileError(path, f"has no {', '.join(missing[:3])}{more}" + (f"; it has {near[0]}" if near else ""))
    if unknown:
        raise FileError(path, f"has {', '.join(unknown[:3])}, which the model has not")
