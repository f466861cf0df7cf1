"""The cheap stage against the full compilation, and closed forms against both: same numbers, no valid one refused."""

import itertools
import random

import pytest
import torch

from tests.autotune.samples import BIG, FOLDER, problem, space
from tests.campaign import count, some
from weft.autotune.gates.gatekeeper import Gatekeeper
from weft.autotune.workers import staging
from weft.autotune.workers.capture import recording
from weft.autotune.workers.compile_pool import CompilePool
from weft.autotune.workers.host import launches
from weft.autotune.workers.launches import KernelFolder, KernelLaunch, source
from weft.cache.row import Status
from weft.targets import LIMITS

TARGETS = ("sm_80", "sm_90", "sm_120")
KERNELS = "weft/codegen/skeletons"


def products(target, n, seed=0):
    """Launches of the product of two matrices with their configurations, over the limit or not."""
    of = space()
    every = [dict(zip(of.knobs, v)) for v in itertools.product(*of.knobs.values())]
    every = [c for c in every if c["BM"] * c["BN"] <= 32 * c["num_warps"] * 256 and c["BM"] + c["BN"] <= 384]
    chosen = random.Random(seed).sample([c for c in every if not (c["BM"] == 256 and c["BN"] == 16)], n)
    p = problem(of, target)
    job = {"workload": p.workload.data(), "target": target, "sizes": BIG, "dtype": "bf16", "kernels": ["matmul"]}
    found = launches(job | {"configs": chosen})["found"]
    return [(c, KernelLaunch.parse(f["launches"][0])) for c, f in zip(chosen, found, strict=True)]


def attentions(target, n, seed=0):
    """Launches of the attention kernels on causal pieces."""
    kernels = KernelFolder(KERNELS)
    module, pieces = kernels.module(".attention.launch"), kernels.module(".attention.pieces")
    walk = module.Walk(pieces.causal_pieces, None, (True, False))
    part = module.Part(walk, module.Walk(pieces.causal_back, None, (False, True)), walk)
    grid = itertools.product((64, 80, 128), (32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4))
    out = []
    for dim, bm, bn, warps, stages in random.Random(seed).sample(list(grid), -(-n // 3)):
        q, k, v = (torch.empty(2, 16, 4096, dim, dtype=torch.bfloat16, device="meta") for _ in range(3))
        one = {"BM": bm, "BN": bn, "num_warps": warps, "num_stages": stages}
        config = dict.fromkeys(("forward", "delta", "dkdv", "dq"), one)
        with recording(target, kernels.root) as found:
            o, lse = module.forward(q, k, v, ((None, (part,)),), 0.1, config)
            module.backward(o, q, k, v, o, lse, ((None, (part,)),), 0.1, config)
        out += [({**one, "dim": dim}, f) for f in found if f.function != "delta"]
    return out[:n]


@pytest.mark.parametrize("target", some(TARGETS, 1))
def test_the_cheap_stage_is_the_compiler(target, record_property):
    """On 200 configurations a target in the soak: 120 products, 80 attentions."""
    pairs = [
        *((str(FOLDER), *pair) for pair in products(target, count(3, 120))),
        *((KERNELS, *pair) for pair in attentions(target, count(2, 80))),
    ]
    limit, of, over, caught, spent = LIMITS[target]["shared_limit"], space(), 0, 0, [0.0, 0.0]
    with CompilePool(FOLDER, 2) as pool, CompilePool(KERNELS, 2) as attention:
        pools = {str(FOLDER): pool, KERNELS: attention}
        asked = [(f, c, pools[f].shared(x, target), pools[f].compile(x, target)) for f, c, x in pairs]
        for folder, config, cheap, full in asked:
            cheap, full = cheap.result(), full.result()
            if full.status is Status.TIMEOUT:  # says nothing of shared memory
                continue
            assert (cheap.status, cheap.shared) == (full.status, full.shared), config
            spent = [spent[0] + cheap.cpu_s, spent[1] + full.cpu_s]
            bound = of.bound(target, {"bytes": 2}, config) if folder == str(FOLDER) else 0
            assert bound <= full.shared, f"the closed form would refuse {config}"
            over += full.shared > limit
            caught += max(bound, cheap.shared) > limit
    assert over == caught
    record_property("compared", len(pairs))
    record_property("over the limit", f"{caught} of {over} found before the full compilation")
    record_property("CPU-seconds", f"{spent[0]:.0f} instead of {spent[1]:.0f}")


def test_an_unknown_triton_leaves_it_to_the_compiler(monkeypatch):
    monkeypatch.setattr(staging, "KNOWN", ())
    [(_, launch)] = products("sm_90", 1)

    assert staging.shared(source(launch, KernelFolder(FOLDER)), "sm_90", launch.options) is None


def test_without_the_cheap_stage_the_full_compilation_refuses(monkeypatch):
    """What is too large goes down to the machine code and no further."""
    small = space(BM=(128,), BN=(256,), BK=(128,), num_warps=(8,), stages=(2, 4))
    p = problem(small, "sm_80", default={})
    object.__setattr__(small, "shared", {})
    with CompilePool(FOLDER, 1, program="tests.autotune.blind_worker") as pool, Gatekeeper(p, pool) as keeper:
        left = keeper.pool("compile")

    assert [c["num_stages"] for c in left.configs] == [2]
    assert keeper.funnel["shared"].refused == 0
    assert keeper.funnel["compile"].rejected == {"shared memory": 1}
