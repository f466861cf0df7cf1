"""What the verbs do, as functions. Nothing here imports torch before it needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.api_export import export as export
from weft.api_export import exportable as exportable
from weft.api_export import saved_plan as saved_plan
from weft.api_hf import import_hf as import_hf
from weft.api_hf import load_hf as loaded
from weft.api_hf import save_hf as save_hf
from weft.api_hf import tensors_of as tensors_of
from weft.api_tune import configured, tunable
from weft.api_tune import prepare as prepare
from weft.api_tune import replay as replay
from weft.api_tune import tune as tune
from weft.api_tune import tuned as tuned
from weft.calls import public
from weft.errors import UsageError
from weft.frontends.problems import as_json, located
from weft.planning import open_spec as open_spec
from weft.planning import plan as plan
from weft.planning import planned as planned
from weft.planning import program as program
from weft.targets import LIMITS

if TYPE_CHECKING:
    from pathlib import Path

    from weft.autotune.inspection import Watch
    from weft.codegen.check.verify import Verified
    from weft.codegen.plan.planner import Planned


@public
def check(source: Any, sets: Iterable[str] = (), small: bool = False, train: bool = True) -> dict[str, Any]:
    """Validate a spec down to its verified graph: form, sizes, formulas, patterns, types. Never imports torch."""
    from weft.codegen.package.decoding import undecodable  # only when it is asked for: every verb imports this file
    from weft.frontends.warned import warnings  # only when it is asked for: every verb imports this file

    spec = open_spec(source, sets, small)
    made = program(spec, train)
    values, why = spec.dims.values, undecodable(made)
    return {
        "spec": spec.name,
        "name": spec.model.name,
        "dims": dict(values),
        "parameters": made.parameter_count(),
        "layers": sum(spec.dims.size(s.repeat) * len(s.layers) for s in spec.model.stack),
        "inputs": made.shown(made.inputs),
        "outputs": made.shown(made.outputs),
        "decode": {"possible": not why, "why": why},
        "warnings": [as_json(p) for p in located(warnings(spec.model, spec.dims), spec.document)],
    }


@public
def compile(
    source: Any,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    train: bool = True,
    out: str | os.PathLike[str] | None = None,
    set: Mapping[str, int] | None = None,
    small: bool = False,
    force: bool = False,
    device: Any = None,
    packs: Iterable[str | os.PathLike[str]] = (),
    require_tuned: bool = False,
) -> Any:
    """Compile a spec (a path, a mapping or a `weft.Model`) to a torch.nn.Module with .plan, .step(), .prefill() and
    .state().

    out: the folder to write the package to; without one it lives in a temporary folder until the process ends. memory:
    most bytes alive at once, as a number or like "60GB". set: sizes of dims. device: where the parameters are drawn;
    "meta" allocates nothing. packs: of tuning results, asked after the store. require_tuned: a kernel of the target
    that was not measured is a CheckFailed. Raises SpecError, InfeasibleError, or UsageError where `out` holds edited
    files (`force`).
    """
    # only when it is asked for: every verb imports this file
    from weft.codegen.build import files_of, module_of, temporary
    from weft.codegen.package.disk import tried, write

    if out is not None:
        tried(out, force)
    spec = open_spec(source, _settings(set), small)
    found = planned(spec, train, target, memory, optimizer)
    files = configured(files_of(found), found, spec.name, packs, require_tuned)
    folder = temporary(files) if out is None else write(files, out, force)
    return module_of(folder, device, wrapped=spec.model.modules())


def _settings(sizes: Any) -> list[str]:
    """DIM=VALUE texts."""
    if sizes is not None and not isinstance(sizes, Mapping):
        raise TypeError(f"set is a mapping of dims to sizes, such as {{'seq': 4096}}, not {type(sizes).__name__}")
    for dim, size in (sizes or {}).items():
        if isinstance(size, bool) or not isinstance(size, int | str):
            raise TypeError(f"set: the size of {dim} is a whole number or an expression over dims, not {size!r}")
    return [f"{dim}={size}" for dim, size in (sizes or {}).items()]


@public
def package(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    packs: Iterable[str | os.PathLike[str]] = (),
    require_tuned: bool = False,
) -> dict[str, str]:
    """The files of the package of a spec: path below its folder -> text. Allocates no parameters. See `compile`."""
    from weft.codegen.build import files_of  # only when it is asked for: every verb imports this file

    spec = open_spec(source, sets, small)
    found = planned(spec, train, target, memory, optimizer)
    return configured(files_of(found), found, spec.name, packs, require_tuned)


@public
def reference(
    source: Any, set: Mapping[str, int] | None = None, small: bool = False, train: bool = True, device: Any = None
) -> Any:
    """The reference interpreter of a spec as a torch.nn.Module: slow, plain, the truth a compiled one is held to."""
    from weft.codegen.check.reference import Reference  # only when it is asked for: every verb imports this file

    spec = open_spec(source, _settings(set), small)
    return Reference(program(spec, train), device=device)


@public
def load(folder: str | os.PathLike[str], device: Any = None) -> Any:
    """The torch.nn.Module of a package that `weft compile` wrote. Raises UsageError where there is none."""
    from weft.codegen.build import module_of  # only when it is asked for: every verb imports this file

    return module_of(folder, device)


@public
def optimizer(
    rule: str,
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    trust: bool = True,
    bound: tuple[float, float] = (0.0, float("inf")),
    bias_correction: bool = True,
) -> Any:
    """A torch.optim.Optimizer by the layer-wise rule "lamb" or "lars" (You et al. 2020), for the parameters of a module
    or groups of them; torch has other rules.

    Each parameter x moves by lr * |x| / |r| * r, r being the rule's direction; bound: what |x| is clamped to, such as
    (0, 10). trust: False for a ratio of 1, as groups of biases and norms have it. Raises UsageError for another rule,
    ValueError for numbers out of range."""
    from weft.codegen.optimizers import LayerWise  # only when it is asked for: every verb imports this file

    numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust": trust, "bound": bound}
    return LayerWise(rule, params, numbers | {"bias_correction": bias_correction})


@public
def load_hf(
    folder: str | os.PathLike[str],
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    train: bool = True,
    out: str | os.PathLike[str] | None = None,
    set: Mapping[str, int] | None = None,
    force: bool = False,
    device: Any = None,
    dtype: Any = None,
    spec: Any = None,
    packs: Iterable[str | os.PathLike[str]] = (),
    require_tuned: bool = False,
) -> Any:
    """Compile the model in a folder of transformers (config.json and safetensors) with its weights, in evaluation mode.

    Weights go from the files straight to where they belong: at no time are they in memory twice. dtype: of the module;
    by default the checkpoint's. spec: one of your own with the parameters of the imported one, such as that with
    another pattern. The rest is as in `weft.compile`. Raises SpecError for a config that no spec says, CheckpointError
    where tensors are left over or missing, FileError for a damaged file, BackendError without the package safetensors.
    """
    given = {"target": target, "memory": memory, "optimizer": optimizer, "train": train, "out": out, "set": set}
    given |= {"force": force, "packs": packs, "require_tuned": require_tuned}
    return loaded(folder, compile, spec, dtype, device, given)


@public
def verify(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    kernels: bool = True,
) -> Verified:
    """Compare the module of a spec, or of a package's folder, with the fp64 reference.

    A package is checked against the graph saved in it. kernels: run its kernels too, on a GPU or in Triton's
    interpreter, in a process of their own."""
    # only when it is asked for: every verb imports this file
    from weft.codegen.build import files_of, temporary, verified

    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        from weft.codegen.package.saved import read  # only when it is asked for: every verb imports this file

        return verified(read(source), source, kernels=kernels)
    spec = open_spec(source, sets, small)
    found = planned(spec, train, target, memory, optimizer)
    return verified(found.program, temporary(files_of(found)), spec.model.modules(), kernels)


@public
def explain(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    resolved: bool = False,
    kernels: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """The plan's table as data: `rows`, and with `resolved` every value of the spec with its origin instead. Of the
    package in a folder: the plan it was compiled by.

    kernels: also compile them for the target, without a GPU (about half a second each): `kernels`, one row a launch,
    or `kernels_note`, why there are none. watch: told how many launches are compiled, of how many."""
    if (saved := saved_plan(source)) is not None:
        if list(sets) or small or target or resolved:
            raise UsageError("a package has its sizes and its target; --set, --small, --target, --resolved take a spec")
        return _explained(source, saved, kernels, watch)
    spec = open_spec(source, sets, small)
    if resolved:
        # only when it is asked for: every verb imports this file
        from weft.frontends.resolved import resolved as values

        return {"spec": spec.name, "values": [asdict(v) for v in values(spec)]}
    from weft.codegen.plan.as_json import document  # only when it is asked for: every verb imports this file
    from weft.codegen.plan.explain import rows

    found = planned(spec, train, target)
    made = document(found)
    return {"spec": spec.name, "rows": rows(made), "plan": made} | (_kernels(found, watch) if kernels else {})


def _explained(source: Any, saved: dict[str, Any], kernels: bool, watch: Watch | None) -> dict[str, Any]:
    """The saved plan of a package, and what the compiler says of the kernels that stand in its folder."""
    from weft.codegen.plan.explain import rows  # only when it is asked for: every verb imports this file

    out = {"spec": saved["spec"], "rows": rows(saved), "plan": saved}
    if not kernels:
        return out
    found, folder, _ = tunable(source, (), False, True, saved["target"]["name"])
    return out | _kernels(found, watch, folder)


def _kernels(found: Planned, watch: Watch | None, folder: Path | None = None) -> dict[str, Any]:
    """What the compiler says of a plan's kernels for its target, or in one line why it is not asked."""
    name = found.target.name
    if found.target.kind != "gpu":
        return {"kernels_note": f"on {name} no kernel is compiled; --target sm_90 shows registers and shared memory"}
    if importlib.util.find_spec("triton") is None:
        return {"kernels_note": "the kernels are not compiled: triton is not installed"}
    from weft.autotune.inspection import inspect  # only when it is asked for: every verb imports this file
    from weft.codegen.build import temporary

    if name not in LIMITS:
        return {"kernels_note": f"the kernels are not compiled: only for {', '.join(LIMITS)}, not for {name}"}
    if not found.kernels.regions:
        return {"kernels_note": "no region of this spec is a kernel"}
    folder = folder or temporary(found.kernels.files)
    return {"kernels": [one.data() for one in inspect(found, folder, name, watch=watch)]}
