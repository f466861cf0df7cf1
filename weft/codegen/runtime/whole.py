"""What torch.compile and torch.export take whole, as one op: attention layouts, loops over steps, products of experts.

All are Python that branches on lengths. Traced, it would fix them, and unroll; as an op its lengths stay open. Outside
a compiler the same code runs as it stands. The namespace is made of the hash of this package's torch code, so packages
in one process never meet, and a program saved by torch.export finds its ops and types where the package was imported.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils import _pytree

FOLDER = Path(__file__).parent


def digest() -> str:
    """SHA-256 of the code that ops and types stand for: the model, the functions of the blocks, the runtime."""
    files = [p for folder in (".", "blocks", "fused", "runtime") for p in sorted((FOLDER.parent / folder).glob("*.py"))]
    return hashlib.sha256(b"\0".join(p.name.encode() + b"\0" + p.read_bytes() for p in files)).hexdigest()


NAMESPACE = f"weft_torch_{digest()[:16]}"
OPS = getattr(torch.ops, NAMESPACE)
KNOWN: dict[str, Any] = {}
LONGEST = 400  # characters of a key that is said in full


class Whole:
    """Base of frozen dataclasses that an op runs: `key` is how the op finds the object, in any process."""

    key: str

    def __post_init__(self) -> None:
        said = _said(self)
        if len(said) > LONGEST:
            said = f"{type(self).__name__}({hashlib.sha256(said.encode()).hexdigest()[:32]})"
        object.__setattr__(self, "key", said)
        KNOWN[said] = self


def _said(x: Any) -> str:
    """Like repr, with functions by the file and name they have in the package."""
    if isinstance(x, Whole):
        return f"{type(x).__name__}({', '.join(_said(getattr(x, f.name)) for f in fields(cast(Any, x)))})"
    if isinstance(x, tuple):
        return f"({', '.join(map(_said, cast(tuple[object, ...], x)))})"
    if is_dataclass(x) or not callable(x):
        return repr(x)
    return ".".join([*(x.__module__ or "").split(".")[-2:], x.__qualname__])


def define(name: str, schema: str, run: Callable[..., object], fake: Callable[..., object]) -> None:
    """Define OPS.name once: forward only, `run` on any device, `fake` for shapes alone."""
    if hasattr(OPS, name):
        return
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("cpu", "cuda"), run)
    torch.library.register_fake(qualified, fake)


def exported(kind: Any) -> Any:
    """A NamedTuple that torch.export can save, under a name of this package's own.

    Imported under several names, each import has its own type, which is pickled by its name; what a loaded program
    returns stays that of the first. Imported again under one name, a package has the type it had.
    """
    name = f"{NAMESPACE}.{kind.__name__}"
    first = _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)
    if first is not None and first.__module__ == kind.__module__:
        return first
    _pytree._register_namedtuple(kind, serialized_type_name=name)
    if first is not None and getattr(sys.modules.get(first.__module__), first.__name__, None) is first:
        _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name] = first
    return kind
