"""Run a whole program by the reference interpreter, from parameters under their logical names."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from weft.errors import UsageError
from weft.ir.indices import indices, outside
from weft.ir.program import Init, Param, Program
from weft.ir.reference import Watch, run
from weft.ir.types import torch_dtype


def sizes_from(program: Program, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Run-time sizes as the input tensors have them, everything else from the program's table."""
    seen: dict[str, int] = {}
    for name in program.inputs:
        value = program.input(name)
        if name not in inputs and name in program.carried:
            continue
        if name not in inputs:
            raise UsageError(f"input {name!r} ({value.type}) is missing")
        shape = tuple(inputs[name].shape)
        if len(shape) != len(value.dims):
            raise UsageError(f"input {name!r} is {value.type}, got shape {shape}")
        for dim, n in zip(value.dims, shape):
            if dim in program.runtime and seen.setdefault(dim, n) != n:
                raise UsageError(f"{dim} is {seen[dim]} in one input and {n} in {name!r}")
    none = {s.rows: 0 for s in program.states if s.past not in inputs}
    return program.resolve(**none, **seen)


def reference(
    program: Program,
    torch: Any,
    params: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
    dtype: Any = None,
    modules: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """The program's outputs by name, as the interpreter computes them.

    `params` maps logical names to tensors of the logical shapes; stacked ones are stacked here, so torch's autograd
    reaches each of them. `inputs` maps public input names to tensors. `dtype` (torch.float64 for the truth) replaces
    every float dtype. States that `inputs` lacks are those of a first call. `modules`: the modules of opaque blocks, by
    key. `watch`: see `weft.ir.reference.run`. Raises IndexError for a token or a target that does not exist.
    """
    sizes = sizes_from(program, inputs) if sizes is None else dict(sizes)

    def cast(x: Any) -> Any:
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x

    args = {name: cast(torch.as_tensor(inputs[name])) for name in program.inputs if name in inputs}
    for v in (program.input(s.past) for s in program.states if s.past not in inputs):
        args[v.name] = torch.empty([sizes[d] for d in v.dims], dtype=dtype or torch_dtype(torch, v.dtype))
    for index in indices(program):
        if wrong := outside(index, args[index.input], sizes[index.dim]):
            raise IndexError(wrong)
    for p in program.params:
        rows = range(p.rows(sizes))
        missing = [p.logical(i) for i in rows if p.logical(i) not in params]
        if missing:
            raise UsageError(f"parameters are missing: {', '.join(missing)}")
        parts = [cast(params[p.logical(i)]) for i in rows]
        args[p.value] = torch.stack(parts) if p.stack else parts[0]
    return dict(zip(program.outputs, run(program.graph, sizes, args, torch, dtype, modules, watch)))


def initial(program: Program, torch: Any, generator: Any = 0, **override: int) -> dict[str, Any]:
    """Logical name -> fp32 tensor drawn from the parameter's Init.

    Each parameter's numbers depend on the seed and its logical name alone, so recompiling, reordering or adding
    parameters never changes the others. `generator` is an integer seed or a torch.Generator (its initial seed counts).
    """
    seed = generator if isinstance(generator, int) else int(generator.initial_seed())
    sizes = program.resolve(**override)
    return {name: _draw(torch, p, sizes, name, seed) for name, (p, _) in program.logical_names(**override).items()}


def _draw(torch: Any, param: Param, sizes: Mapping[str, int], name: str, seed: int) -> Any:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    gen = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    shape = [sizes[d] for d in param.dims]
    init = param.init
    match init.kind:
        case "normal":
            return torch.randn(shape, generator=gen) * init.value
        case "uniform" | "xavier":
            bound = init.value if init.kind == "uniform" else xavier_bound(init, param.dims, sizes)
            return (torch.rand(shape, generator=gen) * 2 - 1) * bound
        case "between":
            return torch.rand(shape, generator=gen) * (init.high - init.value) + init.value
        case "zeros":
            return torch.zeros(shape)
        case "ones":
            return torch.ones(shape)
        case "constant":
            return torch.full(shape, init.value)
        case "first":
            return (torch.arange(shape[-1]) == 0).float().expand(shape).clone()
        case _:
            return poles(torch, init.kind, shape[-1]).float().expand(shape).clone()


def poles(torch: Any, kind: str, count: int) -> Any:
    """Numbers of the poles of a state space, f64[count]; see Init."""
    n = torch.arange(count, dtype=torch.float64)
    match kind:
        case "poles_lin":
            return math.pi * n
        case "poles_inv":
            return count / math.pi * (count / (2 * n + 1) - 1)
        case "poles_real":
            return torch.log(n + 1)
        case _:
            root = torch.sqrt(2 * torch.arange(2 * count, dtype=torch.float64) + 1)
            skew = torch.outer(root, root).triu(1) / 2
            return torch.linalg.eigvalsh(1j * (skew - skew.T))[count:]


def xavier_bound(init: Init, dims: tuple[str, ...], sizes: Mapping[str, int]) -> float:
    """value · sqrt(6 / (fan_in + fan_out)); see Init for which dims count where."""
    inner = init.fan_in or dims[:-1]
    fan_in, fan_out = (math.prod(sizes[d] for d in dims if (d in inner) == side) for side in (True, False))
    return init.value * math.sqrt(6 / (fan_in + fan_out))
