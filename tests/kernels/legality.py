"""Whether Triton's front end and middle take every kernel of an emission, for sm_90, with no GPU and no assembler: a
tenth of a second a launch. The interpreter takes more than the compiler does."""

from tests.kernels.emitted import Emitted
from weft.autotune.space.problems import region_dims, workload
from weft.autotune.workers import staging
from weft.autotune.workers.capture import recording
from weft.autotune.workers.cases import RegionCase
from weft.autotune.workers.launches import KernelFolder, source


def refusals(made: Emitted, dtype: str = "bf16", target: str = "sm_90") -> dict[str, str]:
    """Launch -> what Triton says against it; {} where every launch of every kernel is taken."""
    kernels, out = KernelFolder(made.ops.FOLDER), dict[str, str]()
    for region in made.kernels[2].files.values():
        case = RegionCase(kernels, workload(region, kernels.folder).params)
        args = case.inputs({d: made.sizes[d] for d in region_dims(region.graph)}, "meta", dtype, 0)
        with recording(target, kernels.root) as found, case.configured({}, target):
            case.run(args)
        for launch in found:
            try:
                staging.shared(source(launch, kernels), target, launch.options)
            except Exception as error:
                out[f"{region.kernel} {launch.name}"] = said(error)
    return out


def said(error: BaseException) -> str:
    """An error and what it came from, the first cause last."""
    return f"{error}{f' <- {said(error.__cause__)}' if error.__cause__ else ''}"
