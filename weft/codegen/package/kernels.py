"""What kernels add to a package: `kernels/` (skeletons, region files), `fused/` (the blocks' kernel paths), configs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weft.codegen.package.disk import as_json
from weft.codegen.package.fused import KernelPath, Kernels, RegionOutcome, kernel_path
from weft.codegen.skeletons import shipped
from weft.codegen.skeletons.common.writer.regions import RegionFile
from weft.ir.text import show
from weft.passes.blocks import trusted
from weft.passes.fusion.grouping import Fusion, Region
from weft.passes.fusion.price import Prices
from weft.passes.halves import Derived
from weft.passes.structure import Structure
from weft.targets import find

SCHEMA, REGIONS = "weft.configs/1", "weft.regions/1"


@dataclass(frozen=True)
class Emitted:
    """files: path -> text. fused: names of the blocks that have a kernel path. rows: what became of each region.
    regions: the kernels' files. paths: of each block, by name."""

    files: Mapping[str, str]
    fused: frozenset[str] = frozenset()
    rows: tuple[RegionOutcome, ...] = ()
    regions: tuple[RegionFile, ...] = ()
    paths: Mapping[str, KernelPath] = field(default_factory=dict[str, KernelPath])

    def row(self, block: str, half: str, region: Region) -> RegionOutcome | None:
        """What became of a region."""
        return next((r for r in self.rows if (r.block, r.half, r.region.nodes) == (block, half, region.nodes)), None)


NO_KERNELS = Emitted({})


def kernel_package(
    model: Structure, blocks: Iterable[Derived], prices: Prices, fused: Mapping[tuple[str, str], Fusion]
) -> Emitted:
    """The kernels of a package's blocks. prices: of the plan; of a CPU's, those of sm_90 at its sizes are taken.

    fused: the plan's regions by block and half, at its prices."""
    if prices.target.kind != "gpu":
        prices, fused = Prices(prices.sizes, find("sm_90"), prices.longest), {}
    kernels = Kernels(model.program, prices, fused)
    paths = {made.block.name: kernel_path(made, kernels, trusted(model, made.block)) for made in blocks}
    files = {f"fused/{name}.py": path.source for name, path in paths.items() if path.kernels}
    regions = list(kernels.files.values())
    if files:
        files["fused/__init__.py"] = '"""The blocks once more, their fused regions as kernels."""\n'
        files |= {f"kernels/{r.kernel}.py": r.text for r in regions}
        files |= {f"kernels/{path}": text for path, text in shipped({r.family for r in regions}).items()}
        files["kernels/__init__.py"] = (
            '"""One file a fused region, the skeletons they fill, and what launches them."""\n'
        )
        said = {r.kernel: {"graph": show(r.graph), "results": [v.name for v in r.graph.outputs]} for r in regions}
        files["regions.json"] = as_json({"schema": REGIONS, "regions": said})
    files["configs.json"] = as_json({"schema": SCHEMA, "kernels": {r.kernel: r.configs for r in regions}})
    own = frozenset(name for name, path in paths.items() if path.kernels)
    return Emitted(files, own, tuple(kernels.rows), tuple(regions), paths)
