"""A checkpoint against a family's table: every tensor has a place, every parameter a tensor, every shape is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weft.errors import WeftError
from weft.frontends.hf.config.family import Architecture, ModelFamily
from weft.frontends.hf.tensors.checkpoint import Checkpoint
from weft.frontends.hf.tensors.weights import Tensor

MOST_TOLD = 8


class CheckpointError(WeftError, ValueError):
    """Weights that are not those of the model; `problems` holds all that was found, a line each."""

    exit_code = 3

    def __init__(self, folder: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - MOST_TOLD
        told = [*self.problems[:MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]
        super().__init__("\n  ".join([f"{folder}: the weights are not those of this config", *told]))


@dataclass(frozen=True)
class Match:
    """sources: the tensors that the model is made of, each with the name that the checkpoint has for it. copies: pairs
    of names of the checkpoint that must be equal."""

    sources: tuple[tuple[Tensor, str], ...]
    copies: tuple[tuple[str, str], ...]


def match(
    checkpoint: Checkpoint, family: ModelFamily, architecture: Architecture, wanted: Mapping[str, Tensor]
) -> Match:
    """Where each wanted tensor lies. CheckpointError names every tensor and parameter that is left over."""
    ours = _canonical(checkpoint, family, wanted)
    problems: list[str] = []
    sources: list[tuple[Tensor, str]] = []
    tied = dict(family.tied)
    stands_for = {b: a for a, b in tied.items()}
    for name, tensor in wanted.items():
        own = ours.get(name) or ours.get(stands_for.get(name, ""))
        if own is None:
            parameters = ", ".join(part.name for part in tensor.parts)
            problems.append(f"no tensor {name}: nothing fills {parameters}")
            continue
        stored = checkpoint.tensors[own]
        if stored.shape != tensor.shape:
            problems.append(f"{own} is {list(stored.shape)}, and the config says {list(tensor.shape)}")
        elif not stored.dtype:
            problems.append(f"{own} is {stored.kind}: save the weights unquantised, as F32, F16 or BF16")
        sources.append((tensor, own))
    used = {own for _, own in sources}
    copies: list[tuple[str, str]] = []
    for name, own in ours.items():
        if own in used or name.endswith(family.unneeded) or name.startswith(architecture.unneeded):
            continue
        if name in tied and tied[name] in ours and name not in wanted:
            copies.append((own, ours[tied[name]]))
        else:
            problems.append(f"nothing of the model takes {own[:80]} {list(checkpoint.tensors[own].shape)}")
    if problems:
        raise CheckpointError(checkpoint.folder, problems)
    return Match(tuple(sources), tuple(copies))


def _canonical(checkpoint: Checkpoint, family: ModelFamily, wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """The family's name of every tensor -> the checkpoint's: with the prefix that a bare model's names lack, and with
    the endings of today."""
    bare = family.prefix and not any(name.startswith(family.prefix) for name in checkpoint.tensors)
    today: dict[str, str] = {}
    for own in checkpoint.tensors:
        name = own
        for old, new in family.renamed:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        today[own] = f"{family.prefix}{name}" if bare and name not in wanted else name
    found: dict[str, str] = {}
    for own, name in sorted(today.items(), key=lambda pair: pair[0] != pair[1]):
        found[own if name in found else name] = own  # what stands for a name that is there already is left over
    return found
