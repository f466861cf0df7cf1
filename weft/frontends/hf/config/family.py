"""What a family of models is: a row of the table, as data, and the words that its spec is put together from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weft.frontends.hf.config.options import Options
from weft.frontends.hf.tensors.weights import WeightRow

Spec = dict[str, Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A class of transformers: the weights of its heads, and beginnings of names of weights that none of them reads."""

    rows: tuple[WeightRow, ...] = ()
    unneeded: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFamily:
    """A model type of transformers.

    name: its `model_type`, and the name of the spec. architectures: the classes whose weights a spec holds, the one
    that a config without any means first. options: keys that change the function; ignored: further keys that do not.
    divides: pairs of options of which the first divides the second, unless a third is given. spec: from the options'
    values to the spec; "architecture" is among them. derived: further values, which rows go by. rows: weights.
    prefix: what the checkpoint of a bare model leaves out of every name. renamed: endings of old checkpoints and what
    they are called. tied: tensors that are another's copy where the head is tied. unneeded: endings of names of
    tensors that no result reads."""

    name: str
    architectures: Mapping[str, Architecture]
    options: Options
    spec: Callable[[Values], Spec]
    rows: tuple[WeightRow, ...]
    derived: Callable[[Values], Values] = lambda c: {}
    prefix: str = ""
    ignored: frozenset[str] = frozenset()
    divides: tuple[tuple[str, ...], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    unneeded: tuple[str, ...] = ()


# The words of a spec


def norm(kind: str, eps: float, **more: Any) -> Any:
    """A norm by its name where that says all."""
    usual = {"layer_norm": 1e-5, "rms_norm": 1e-6}[kind]
    return kind if eps == usual and not more else {"kind": kind, **({} if eps == usual else {"eps": eps}), **more}


def without(part: Spec, *silent: Any) -> Spec:
    """A map without the keys whose values say nothing: None, 0 where a rate is none, or one of `silent`."""
    return {k: v for k, v in part.items() if v is not None and not (k == "dropout" and v == 0) and v not in silent}


def dims(seq: int, width: int, heads: int, inner: int, layers: int | None, vocab: int, **more: Any) -> Spec:
    """The sizes by name, as expressions where one follows from others; `kv_heads` and `head` among `more`,
    where None leaves a name out."""
    kv_heads, head = more.pop("kv_heads", None) or heads, more.pop("head", None) or width // heads
    return without({
        "batch": 1, "seq": seq, "width": width, "heads": heads,
        "kv_heads": None if kv_heads == heads else kv_heads,
        "head": "width // heads" if head == width // heads else head,
        "inner": multiple(inner, width), "layers": layers, **more, "vocab": vocab,
    })  # fmt: skip


def multiple(size: int, of: int) -> Any:
    """`4*width` for four times that."""
    return f"{size // of}*width" if size % of == 0 and 1 < size // of <= 8 else size


SMALL = {"seq": 32, "width": 32, "heads": 4, "kv_heads": 2, "head": 8, "inner": 48, "layers": 2, "vocab": 96,
         "window": 8, "experts": 4, "shared": 40, "periods": 1, "expert": 24, "own": 8, "rotary": 4,
         "value": 6, "rank": 12, "query_rank": 16, "dense": 1, "routed": 1}  # fmt: skip


def small(sizes: Spec, **more: Any) -> Spec:
    """Dims of a model that runs in about a second: those that are numbers, none larger than it is."""
    found = {k: min(v, sizes[k]) for k, v in SMALL.items() if isinstance(sizes.get(k), int)}
    if found["heads"] % found.get("kv_heads", 1):
        found["kv_heads"] = 1
    return found | more


def bias(on: bool) -> bool | None:
    """`bias: false` is written, `bias: true` is what is meant anyway."""
    return None if on else False


RUNTIME = {"batch": {"max": 64}}
