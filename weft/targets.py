"""Machine descriptions: what a byte, a FLOP and a launch cost on each target, and what its multiprocessors have. Data.

Peaks are the vendors' published dense numbers for one representative part, named in `part`; `reach` is the share of a
peak that good kernels get (about 0.7 of both, measured on H100 and H200 for large bf16 products and copies). `cpu` is
two ordinary cores, where a launch is the dispatch of a torch op.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from weft.errors import UsageError


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU's multiprocessors: how many, and what each has: bytes of shared memory, of which RESERVED of every block's
    are the system's; warps; blocks; registers of 32 bits. CUDA C++ Programming Guide, technical specifications."""

    sms: int
    shared: int
    warps: int
    blocks: int
    registers: int = 65_536
    threads: int = 1024  # of a block


RESERVED = 1024


@dataclass(frozen=True, slots=True)
class Target:
    """One machine. Bytes per second, FLOPs per second, seconds, bytes. chip: where kernels are compiled for it."""

    name: str
    part: str
    kind: str  # cpu | gpu
    bandwidth: float
    matrix: Mapping[str, float]  # contractions and attention, by dtype
    vector: Mapping[str, float]  # everything else
    launch: float
    memory: int
    chip: Chip | None = None
    reach: float = 0.7

    def seconds(self, nbytes: float, flops: float, dtype: str = "f32", matrix: bool = False) -> float:
        """launch + max(bytes / bandwidth, FLOPs / rate): the roofline price of one kernel."""
        rate = (self.matrix if matrix else self.vector).get(dtype, self.vector["f32"])
        return self.launch + max(nbytes / self.bandwidth, flops / rate) / self.reach


def _gpu(
    name: str, part: str, bandwidth: float, half: float, single: float, double: float, memory: float, *chip: int
) -> Target:
    """`half`, `double`: matrix peaks in TFLOP/s; `single`: the vector fp32 peak, as contractions do not use TF32."""
    matrix = {"bf16": half * 1e12, "f16": half * 1e12, "f32": single * 1e12, "f64": double * 1e12}
    vector = {"f32": single * 1e12, "f64": double * 1e12, "bf16": single * 1e12, "f16": single * 1e12}
    return Target(
        name, part, "gpu", bandwidth * 1e12, matrix, vector, 4e-6, int(memory * 1e9), Chip(*chip) if chip else None
    )


_CPU = {"f32": 1e11, "f64": 5e10, "bf16": 5e10, "f16": 5e10}
TARGETS: tuple[Target, ...] = (
    Target("cpu", "2 cores, AVX2", "cpu", 2e10, _CPU, {d: r / 10 for d, r in _CPU.items()}, 5e-6, int(8e9)),
    _gpu("sm_80", "A100 SXM 80 GB", 2.039, 312, 19.5, 19.5, 80, 108, 167_936, 64, 32),
    _gpu("sm_90", "H100 SXM 80 GB", 3.35, 989, 67, 67, 80, 132, 233_472, 64, 32),
    _gpu("sm_100", "B200 180 GB", 8.0, 2250, 75, 37, 180, 148, 233_472, 64, 32),
    _gpu("sm_120", "RTX 5090 32 GB", 1.792, 209.5, 104.8, 1.64, 32, 170, 102_400, 48, 24),
    _gpu("gfx942", "MI300X 192 GB", 5.3, 1307.4, 163.4, 163.4, 192),
)
BY_NAME: Mapping[str, Target] = {t.name: t for t in TARGETS}
CHIPS: Mapping[str, Chip] = {t.name: t.chip for t in TARGETS if t.chip is not None}
"""Of the targets that kernels are compiled for."""
ARCHS = tuple(CHIPS)
KERNEL_DTYPES = ("bf16", "f16", "f32")
"""Floats that kernels have configurations for."""
LIMITS: Mapping[str, Mapping[str, int]] = {
    name: {
        "arch": int(name.removeprefix("sm_")),
        "shared_limit": chip.shared - RESERVED,
        "threads_limit": chip.threads,
        "registers_limit": chip.registers,
    }
    for name, chip in CHIPS.items()
}
"""What formulas may say of a target: bytes of shared memory a block, threads a block, registers a multiprocessor."""
SOLD_AS: Mapping[str, str] = {
    **dict.fromkeys(("a100", "a800", "ampere"), "sm_80"),
    **dict.fromkeys(("h100", "h200", "h800", "h20", "gh200", "hopper"), "sm_90"),
    **dict.fromkeys(("b100", "b200", "gb200", "blackwell"), "sm_100"),
    **dict.fromkeys(("5090", "5080", "rtx5090", "rtx5080"), "sm_120"),
    **dict.fromkeys(("mi300", "mi300x", "mi300a"), "gfx942"),
}
"""Names that people give to a target, for a hint."""


def find(name: str) -> Target:
    """The target of that name. Raises UsageError listing the known ones."""
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a target is a name such as 'sm_90', not {type(name).__name__}")
    if name not in BY_NAME:
        bare = name.lower().replace("-", "").replace("_", "").replace(" ", "")
        same = next((t for t in BY_NAME if bare == t.replace("_", "")), SOLD_AS.get(bare))
        hint = f"did you mean {same}?" if same else f"known: {', '.join(BY_NAME)}"
        raise UsageError(f"no target is called {name[:40]!r}; {hint}")
    return BY_NAME[name]
