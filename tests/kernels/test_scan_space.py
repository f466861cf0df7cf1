"""Configurations of the scan kernels: the defaults are of the space, and nothing spills there on sm_90."""

from typing import Any

import pytest
import triton.language as tl

from tests.campaign import SOAK
from tests.kernels.aot import Built, build, source
from tests.kernels.scan_cells import CELLS, Cell
from weft.autotune.space.problems import spaces
from weft.codegen.skeletons.scan import kernel as scan
from weft.codegen.skeletons.scan.writer.space import DEFAULTS

NAMES = {"bf16": "*bf16", "f32": "*fp32"}
GROUPS = {
    "scan": ("SEQ", "LANE", "INIT", "OUT", "KEPT", "LAST"),
    "scan_backward": ("SEQ", "LANE", "KEPT", "DY", "DLAST", "DX", "DLANE", "DINIT"),
}


def compiled(kernel: str, cell: Cell, config: dict[str, Any], dtype: str = "bf16", arch: str = "sm_90") -> Built:
    """A cell over time, batch and channels, its states kept."""
    states, wide = cell.states, ("KEPT", "LAST", "DLANE", "DINIT")
    counts = {"SEQ": cell.inputs, "LANE": cell.parameters, "OUT": cell.outputs, "DY": cell.outputs, "DX": cell.inputs}
    counts |= {"DLANE": cell.parameters, "INIT": 0 if cell.start else states}
    types: dict[str, Any] = {"T": "i32", "SIZES": ("i32", "i32"), "X": ("*i64", ("i32", "i32"))}
    constants: dict[str, Any] = {}
    for name in GROUPS[kernel]:
        n, dims = counts.get(name, states), 3 if name in ("SEQ", "OUT", "KEPT", "DY", "DX") else 2
        types[name] = ("*fp32" if name in wide else NAMES[dtype],) * n
        types[f"{name.lower()}_strides"] = (("i32",) * dims,) * n
        constants[f"{name}_DIMS"] = ((1,) * dims,) * n
    knobs = {k: v for k, v in config.items() if k != "num_warps"}
    constants |= {"before": cell.before, "cell": cell.cell, "REVERSE": False, "ACC": tl.float32, "IDX": tl.int32}
    constants |= {"start": cell.start, "STATES": states, "vjp": cell.vjp, "EVERY": 8} | knobs
    function = getattr(scan, kernel)
    own = {k: v for k, v in constants.items() if k in function.arg_names}
    return build(source(function, types, own), arch, config["num_warps"])


@pytest.mark.parametrize("kernel", DEFAULTS)
def test_defaults_are_of_the_space(kernel):
    assert spaces("scan")[kernel].refusal("sm_90", {}, DEFAULTS[kernel]) == ""


@pytest.mark.parametrize("dtype", ["bf16", "f32"] if SOAK else ["bf16"])
@pytest.mark.parametrize("kernel", DEFAULTS)
@pytest.mark.parametrize("cell", CELLS if SOAK else CELLS[2:], ids=lambda cell: cell.cell.__name__)
def test_nothing_spills(kernel, cell, dtype):
    built = compiled(kernel, cell, DEFAULTS[kernel], dtype)

    assert built.fits
    assert built.stack == 0
