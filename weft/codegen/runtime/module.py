"""What the emitted modules share: parameters under their logical names, their initialisation, checks of the inputs."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
Start = float | tuple[float, float]
Parameters = tuple[tuple[str, tuple[int, ...], str, str, Start], ...]  # name, shape, dtype, initialisation, its value


class Group(nn.Module):
    """Parameters and blocks below one part of a dotted name.

    Called with a parameter's name it gives that parameter, so what wraps a group (low-rank adapters) or hooks into its
    forward (pruning, weight_norm) is heard."""

    def forward(self, name: str) -> Tensor:
        return getattr(self, name)

    def extra_repr(self) -> str:
        own = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        return ", ".join(f"{name} {list(p.shape)}" for name, p in own)


def place(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Register a module, parameter or buffer under a dotted name, whatever its parts are called."""
    *path, leaf = name.split(".")
    for part in path:
        root = root._modules.setdefault(part, Group()) or root
    if isinstance(value, nn.Parameter):
        root._parameters[leaf] = value
    elif isinstance(value, Tensor):
        root._buffers[leaf] = value
    else:
        root._modules[leaf] = value


class Block(nn.Module):
    """A block of the model: `PARAMETERS` are its own, in the order its functions take them; those among them that no
    gradient moves, `fixed`, are buffers.

    wrapped: modules that are run but not looked into, by key; see `install`. rates: what an optimizer should take for a
    parameter in place of its own numbers, by name; see `parameter_groups`."""

    wrapped: Mapping[str, nn.Module] = {}
    rates: Mapping[str, Mapping[str, float]] = {}

    def __init__(self, parameters: Parameters, device: torch.device | str | None = None, fixed: tuple[str, ...] = ()):
        super().__init__()
        self.table = parameters
        for name, shape, dtype, _, _ in parameters:
            value = torch.empty(shape, dtype=DTYPES[dtype], device=device)
            place(self, name, value if name in fixed else nn.Parameter(value))


def install(root: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Hand wrapped modules to every block of a model. Their parameters stay the model's own; buffers are theirs."""
    for block in root.modules():
        if isinstance(block, Block):
            block.__dict__["wrapped"] = modules
    return root


def weights(block: Block) -> list[Tensor]:
    """A block's own parameters, in order, as they are now (an engine may have swapped them)."""
    return [weight(block, name) for name, *_ in block.table]


def weight(root: nn.Module, name: str) -> Tensor:
    """The parameter or buffer below `root` of that dotted name, or what a parametrization, a hook or a wrapper makes
    of it."""
    *path, leaf = name.split(".")
    home = found(root, ".".join(path))
    own = home._parameters.get(leaf, home._buffers.get(leaf))
    if own is not None:
        return own
    if isinstance(home, Group) or not hasattr(home, leaf) or hasattr(home, "base_layer"):
        return home(leaf)  # PEFT's wrappers have the attribute too, that of what they wrap: they act when called
    for hook in home._forward_pre_hooks.values():
        if leaf in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            hook(home, ())  # torch's pruning and weight_norm make the attribute anew before each forward
    return getattr(home, leaf)


def found(root: nn.Module, name: str) -> nn.Module:
    """The module below `root` of that dotted name; a wrapper on the way is asked for what it wraps."""
    for part in name.split(".") if name else ():
        module = root._modules.get(part)
        root = getattr(root, part) if module is None else module
    return root


def tables(root: nn.Module) -> Iterator[tuple[str, Tensor, str, Start]]:
    """(logical name, parameter, initialisation, its value) of every block's own parameters."""
    for prefix, block in root.named_modules():
        if isinstance(block, Block):
            for name, _, _, kind, value in block.table:
                yield f"{prefix}.{name}" if prefix else name, weight(block, name), kind, value


def parameter_groups(root: nn.Module) -> list[dict[str, Any]]:
    """All parameters, in groups for an optimizer: first those that take its own `lr` and `weight_decay`, then those for
    which the spec says others."""
    own = {
        f"{prefix}.{name}" if prefix else name: tuple(rates.items())
        for prefix, block in root.named_modules()
        if isinstance(block, Block)
        for name, rates in block.rates.items()
    }
    groups: dict[tuple[tuple[str, float], ...], list[nn.Parameter]] = {(): []}
    for name, parameter in root.named_parameters():
        groups.setdefault(own.get(name, ()), []).append(parameter)
    return [{"params": found, **dict(rates)} for rates, found in groups.items() if found]


@torch.no_grad()
def initialise(root: nn.Module, generator: torch.Generator | int = 0) -> None:
    """Draw every parameter anew; each depends on the seed and its logical name alone."""
    seed = generator if isinstance(generator, int) else int(generator.initial_seed())
    for name, parameter, kind, value in tables(root):
        if parameter.device.type == "meta":
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        draw = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")  # whatever the defaults are
        fill(drawn, kind, value, draw)
        *path, leaf = name.split(".")
        home = found(root, ".".join(path))
        if isinstance(parameter, nn.Parameter) or leaf in home._buffers:
            parameter.copy_(_split_like(parameter, drawn))
        else:
            setattr(home, leaf, drawn.to(parameter))


def fill(x: Tensor, kind: str, value: Start, draw: torch.Generator) -> None:
    """Draw a parameter. Along the last axis go 1, 0, 0 .. of `first`, and the numbers of `poles_`."""
    if isinstance(value, tuple):
        x.uniform_(generator=draw).mul_(value[1] - value[0]).add_(value[0])
    elif kind == "normal":
        x.normal_(generator=draw).mul_(value)
    elif kind == "uniform":
        x.uniform_(generator=draw).mul_(2).sub_(1).mul_(value)
    elif kind.startswith("poles"):
        x.copy_(poles(kind, x.shape[-1]))
    elif kind == "first":
        x.zero_()[..., 0] = 1.0
    else:
        x.fill_({"zeros": 0.0, "ones": 1.0}.get(kind, value))


def poles(kind: str, count: int) -> Tensor:
    """Where the poles of a state space start, n from 0 up to `count`: pi n; count/pi (count/(2n + 1) - 1); log(n + 1);
    the imaginary parts of the HiPPO matrix of twice the size without its part of rank one, those above 0."""
    n = torch.arange(count, dtype=torch.float64)
    if kind == "poles_lin":
        return torch.pi * n
    if kind == "poles_inv":
        return count / torch.pi * (count / (2 * n + 1) - 1)
    if kind == "poles_real":
        return torch.log(n + 1)
    root = torch.sqrt(2 * torch.arange(2 * count, dtype=torch.float64) + 1)
    skew = torch.outer(root, root).triu(1) / 2
    return torch.linalg.eigvalsh(1j * (skew - skew.T))[count:]


def _split_like(parameter: Any, drawn: Tensor) -> Tensor:
    """The whole of a parameter that an engine has split over ranks, split as that is; each rank has drawn it all."""
    if not hasattr(parameter, "device_mesh"):
        return drawn
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    whole = DTensor.from_local(drawn.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements)


def check(
    inputs: Mapping[str, object],
    signature: Mapping[str, tuple[torch.dtype, tuple[str, ...]]],
    fixed: Mapping[str, int],
    limits: Mapping[str, tuple[int, int]],
    ranges: Iterable[tuple[str, str, int, int | None]] = (),
    optional: tuple[str, ...] = (),
) -> dict[str, int]:
    """The run-time sizes of a call. Raises TypeError, ValueError or IndexError that names the input and the dim.

    signature: input -> dtype and dims; fixed: dim -> its compiled size; limits: run-time dim -> (largest, multiple of);
    ranges: see `bounded`; optional: inputs that may be None, all or none of them.
    """
    sizes: dict[str, int] = {}
    absent = [name for name in optional if inputs[name] is None]
    if absent and len(absent) < len(optional):
        raise ValueError(
            f"the loss needs {' and '.join(optional)}, but {' and '.join(absent)} is None: give all or none"
        )
    for name, (dtype, dims) in signature.items():
        x = inputs[name]
        if name in absent:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor [{' '.join(dims)}], got {type(x).__name__}")
        if dtype.is_floating_point != x.dtype.is_floating_point or (dtype == torch.bool) != (x.dtype == torch.bool):
            raise TypeError(f"{name} must be {dtype}, got {x.dtype}")
        if x.dim() != len(dims):
            raise ValueError(f"{name} must be [{' '.join(dims)}], got shape {list(x.shape)}")
        for dim, n in zip(dims, x.shape):
            if dim in fixed and n != fixed[dim]:
                raise ValueError(f"{name}: dim {dim} is {n}, compiled for {fixed[dim]}")
            if dim in limits:
                most, multiple = limits[dim]
                if sizes.setdefault(dim, n) != n:
                    raise ValueError(f"{name}: dim {dim} is {n}, but {sizes[dim]} in another input")
                if n > most:
                    raise ValueError(f"{name}: dim {dim} is {n}, over its declared maximum {most}")
                if n < 1 or n % multiple:
                    raise ValueError(f"{name}: dim {dim} is {n}, not a positive multiple of {multiple}")
    bounded(inputs, ranges)
    return sizes


def bounded(inputs: Mapping[str, object], ranges: Iterable[tuple[str, str, int, int | None]]) -> None:
    """Raises IndexError where a number of an input is no coordinate of the dim it looks up.

    ranges: input, dim, its size, a number that stands for none. On a GPU, and where torch traces, it is an assertion on
    the device: nothing waits for it."""
    for name, dim, size, ignore in ranges:
        x = inputs.get(name)
        if not isinstance(x, Tensor):
            continue
        bad, besides = (x < 0) | (x >= size), ""
        if ignore is not None:
            bad, besides = bad & (x != ignore), f" ({ignore} does not count)"
        where = f"is outside dim {dim}, 0 to {size - 1}{besides}"
        if x.is_cuda or type(x) is not Tensor or torch.compiler.is_compiling():
            torch._assert_async(~bad.any(), f"{name}: a number {where}")  # pyright: ignore[reportPrivateImportUsage]
        elif not x.is_meta and bad.any():
            raise IndexError(f"{name}: {int(x[bad][0])} {where}")


def refuse_autocast(x: Tensor) -> None:
    """Dtypes are the spec's policy; autocast would change some and not others. On meta there is no autocast."""
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        raise RuntimeError("this model has its own dtypes (the spec's `dtype:`); call it outside torch.autocast")


def draw_seed(seed: Tensor | int | None, training: bool, device: torch.device) -> Tensor | None:
    """The dropout seed: the caller's, else one from torch's generator; None (no dropout) outside training."""
    if not training:
        return None
    if seed is None:
        return torch.randint(2**62, (), device=device)
    return torch.as_tensor(seed, dtype=torch.int64, device=device)
