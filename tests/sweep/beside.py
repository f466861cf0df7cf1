"""What no comparison with the reference shows, of a compiled case: calls that have to be refused, memory, collectives,
what a file says of itself, and kernels as a GPU would be given them.

Each check is cheap, and says nothing of a case that it is not about; a campaign makes them on a share of its cases.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.sweep.draw import Spec, blocks_of, steps_of
from tests.sweep.fault import Fault, at
from weft import api
from weft.autotune.space.problems import region_dims, workload
from weft.autotune.workers import staging
from weft.autotune.workers.capture import recording
from weft.autotune.workers.cases import RegionCase
from weft.autotune.workers.launches import KernelFolder, KernelLaunch, source
from weft.codegen.build import module_of
from weft.codegen.check import verify
from weft.codegen.check.calling import call
from weft.codegen.check.decode import start
from weft.codegen.check.one_dtype import uniform
from weft.codegen.measure.profile import LiveBytes
from weft.ir.indices import indices, targets
from weft.ir.types import torch_dtype

TARGET = "sm_90"
WIDE = re.compile(r"(mean|rstd|lse|losses|loss)(_\d+)?")
"""Statistics, log-sum-exps and losses, which no moved model narrows."""
FLOATS = {"f32": 1, "f16": 10, "bf16": 16, "f64": 11}
"""ONNX's numbers of our dtypes."""


def checked(case: Any) -> list[Fault]:
    """Every check of one `compare.Case`."""
    found: list[Fault] = []
    for check in CHECKS:
        try:
            at(check.__name__, check, case)
        except Fault as fault:
            found.append(fault)
    return found


def drawn(case: Any) -> dict[str, Tensor]:
    """Inputs of the longest run, floats in float64."""
    found = verify.case(case.program, max(case.lengths), case.wrapped, **case.run_of(max(case.lengths)))[2]
    return {k: v.double() if v.is_floating_point() else v for k, v in found.items()}


def refused(case: Any) -> None:
    """A token, type or target that does not exist is refused by name; a target that does not count is taken."""
    inputs = drawn(case)
    for index in indices(case.program):
        x = inputs[index.input].clone()
        for wrong in (case.program.resolve()[index.dim], -1):
            x.view(-1)[0] = wrong
            try:
                with case.wide():
                    call(case.program, case.module, {**inputs, index.input: x})
            except IndexError as e:
                if index.input in str(e):
                    continue
            raise Fault("refused", f"{index.input} outside {index.dim} is not refused by name")
        if index.ignore is not None:
            x.view(-1)[0] = index.ignore
            with case.wide():
                call(case.program, case.module, {**inputs, index.input: x})


def remembered(case: Any) -> None:
    """A prompt takes tensors as a run of the same tokens does, be they many to each expert; it drops fewer, and so may
    have twice the rows."""
    if not any(b["kind"] == "moe" for b in blocks_of(case.spec)):
        return
    inputs = {k: v for k, v in drawn(case).items() if k not in targets(case.program)}
    module = case.module.eval()
    try:
        with case.wide():
            start(module, inputs)
    except NotImplementedError:
        return
    fed = {k: v for k, v in inputs.items() if k in prompted(module)}
    with torch.no_grad(), case.wide(), Largest() as run:
        call(case.program, module, inputs)
    with torch.no_grad(), case.wide(), Largest() as prompt:
        module.prefill(**fed)
    if prompt.elements > max(2 * run.elements, max(p.numel() for p in module.parameters())):
        raise Fault("remembered", f"prefill makes a tensor of {prompt.elements}, forward of {run.elements}")


def dropless(case: Any) -> None:
    """Experts that no sequence can fill compute on as many tokens as they were sent, not on room for all."""
    blocks = blocks_of(case.spec)
    sparse = [b for b in blocks if b["kind"] == "moe" and b.get("capacity") == "seq" and b.get("top_k", 1) < 3]
    if not sparse or any(b["kind"] not in ("moe", "mlp") or b.get("top_k", 1) > 2 for b in blocks):
        return  # of others a tensor may be as large as the room
    if any(b["kind"] == "moe" and b not in sparse for b in blocks) or "streams" in case.spec:
        return
    inputs = {k: v for k, v in drawn(case).items() if k not in targets(case.program)}
    with torch.no_grad(), case.wide(), Largest() as run:
        call(case.program, case.module.eval(), inputs)
    room = case.program.resolve(batch=2, seq=max(case.lengths))
    if run.elements >= 2 * room["seq"] * room["experts"] * room["width"]:
        raise Fault("dropless", f"a tensor of {run.elements} has room for every token in each expert")


def prompted(module: Any) -> tuple[str, ...]:
    code = module.prefill.__wrapped__.__code__
    return code.co_varnames[: code.co_argcount]


class Largest(TorchDispatchMode):
    """The elements of the largest tensor made while the mode is on."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor) and not x._is_view()]
        self.elements = max([self.elements, *made])
        return out


def predicted(case: Any) -> None:
    """No training step takes more than the plan's peak, what operators take inside themselves counted."""
    if case.wrapped:
        return
    module = module_of(case.folder)
    given = {}
    for name in case.program.inputs:
        v = case.program.input(name)
        shape = [case.planned.sizes[d] for d in v.dims]
        given[name] = torch.ones(shape, dtype=torch.bool) if v.dtype == "bool" else torch.randint(0, 2, shape)
        given[name] = given[name].to(torch_dtype(torch, v.dtype))
    held = [*module.parameters(), *given.values()]
    with LiveBytes(held, threads=torch.get_num_threads()) as live:
        call(case.program, module, given)[case.program.outputs[0]].backward()
    real = live.most + sum(x.untyped_storage().nbytes() for x in held)
    if real > case.planned.peak:
        raise Fault("predicted", f"a step takes {real / case.planned.peak - 1:.1e} more than the plan says")


def divided(case: Any) -> None:
    """Each half of an attention or an mlp over two devices is reduced once (Shoeybi et al. 2019, section 3), the
    gradient of a norm that several share once for all of them, and that of a stream that a cross attention reads once
    more."""
    stages = case.spec["stack"]
    if not all(map(splits, blocks_of(case.spec))) or any("cycle" in stage for stage in stages):
        return
    plan = api.plan(case.spec, small="small" in case.spec, target=TARGET, mesh="tp=2")
    rows = [c for c in plan["mesh"]["collectives"] if c["kind"] == "all_reduce" and c["dims"][-1] == "width"]
    for side in ("forward", "backward"):
        mine = [c for c in rows if c["side"].startswith(side) and not c["block"].endswith(ENDS)]
        times, want = sum(c["times"] for c in mine), sum(s.get("repeat", 1) * halves(s["layer"], side) for s in stages)
        saved = together if side == "forward" else narrow
        less = sum(s.get("repeat", 1) * saved(case.spec, s) for s in stages)
        if not want - less <= times <= want:
            raise Fault("divided", f"{side}: {times} all-reduces in {want} halves of layers")


ENDS = ("embed", "head", "classify")


def halves(layer: list[Any], side: str) -> int:
    """How often a layer's activations or their gradients are reduced."""
    steps = [step if isinstance(step, dict) else {"block": step} for step in layer]
    inner = [step.get("parallel", [step]) for step in steps]
    if side == "forward":
        return sum(map(len, inner))
    blocks = [x["block"] for each in inner for x in each if isinstance(x, dict)]
    crossing = sum("context" in b and "latent" not in b for b in blocks)  # that of a latent is reduced as it is, narrow
    return crossing + sum(1 if "norm" in step and "parallel" in step else len(each) for step, each in zip(steps, inner))


def together(spec: Spec, stage: Spec) -> int:
    """How many of a stage's halves lie beside another one: their sum may be reduced once."""
    return sum(len(step["parallel"]) - 1 for step in stage["layer"] if isinstance(step, dict) and "parallel" in step)


def narrow(spec: Spec, stage: Spec) -> int:
    """A stage's attentions whose queries and keys are products of latents: these gradients may be reduced instead."""
    steps = steps_of({"stack": [stage]})
    blocks = [step["block"] if isinstance(step, dict) else step for step in steps]
    told = [spec["blocks"][b] if isinstance(b, str) else b for b in blocks]
    return sum("query_rank" in (block.get("latent") or {}) for block in told)


def splits(block: Any) -> bool:
    """Is it one whose work two devices can share, of even sizes?"""
    plain = block["kind"] in ("attention", "mlp") and "globals" not in block
    return plain and block.get("kv_heads") != 1 and block.get("inner") != 3


def told(case: Any) -> None:
    """An ONNX file whose floats are not the spec's says so."""
    from weft.codegen.onnx.export import portable  # onnx, which a sweep without such a case does without
    from weft.passes.inference import inference

    if case.wrapped:
        return
    model = portable(inference(case.program))
    policy = case.program.policy
    kinds = {v.type.tensor_type.elem_type for v in model.graph.input} & set(FLOATS.values())
    said = [p.value for p in model.metadata_props if p.key == "weft.dtype"]
    other = kinds - {FLOATS[policy.params]} or {policy.params, policy.compute, policy.accumulate} != {"f32"}
    if other and not any(policy.compute in text for text in said):
        raise Fault("told", "an ONNX file of other dtypes than the spec's does not say so")


def launched(case: Any) -> None:
    """Kernels as a GPU is given them: results as wide as fakes say, statistics float32 at least, an index for whatever
    is read, and cells that Triton's front end takes."""
    folder = case.folder / "kernels"
    if case.wrapped or not any(folder.glob("k[0-9]*.py")):
        return
    kernels = KernelFolder(folder)
    for region in case.planned.kernels.regions:
        one = RegionCase(kernels, workload(region, folder).params)
        args = one.inputs({d: case.planned.sizes[d] for d in region_dims(region.graph)}, "meta", "bf16", 0)
        made, launches = recorded(one, args)
        said = one.module.empty(*args)
        for v, a, b in zip(region.graph.outputs, made, said if isinstance(said, tuple) else (said,), strict=True):
            if uniform(case.program) and (a.dtype, a.shape) != (b.dtype, b.shape):
                raise Fault("launched", f"a result of {region.skeleton} is {a.dtype}, its fake {b.dtype}")
            if len(one.floats) == 1 and WIDE.fullmatch(v.name) and a.dtype == torch.bfloat16:
                raise Fault("launched", f"a statistic of {region.skeleton} is bfloat16")
        if region.skeleton == "scan":
            for launch in launches:
                at(f"launched: {launch.name}", staging.shared, source(launch, kernels), TARGET, launch.options)
        if region.skeleton != "attention":  # whose bases are int64 in the kernels
            indexed(one, region, args)


def recorded(one: RegionCase, args: Any) -> tuple[tuple[Tensor, ...], list[KernelLaunch]]:
    with recording(TARGET, one.kernels.root) as launches, one.configured({}, TARGET):
        return one.run(args), launches


ROUTED = ("expert", "place")  # read by torch, which makes a table of tokens for the kernel


def indexed(one: RegionCase, region: Any, args: Any) -> None:
    """Whichever operand is past 2^31 elements, a launch that reads it counts in int64."""
    for i, v in enumerate(region.graph.inputs):
        x = args[i]
        if isinstance(x, Tensor) and x.numel() > 1 and not v.name.startswith(ROUTED):
            far = x.as_strided(x.shape, [s * (1 + (1 << 32) // x.numel()) for s in x.stride()])
            launches = recorded(one, (*args[:i], far, *args[i + 1 :]))[1]
            if not any(map(wide_index, launches)):
                raise Fault("launched", f"an operand of {region.skeleton} past 2^31 is indexed in int32")


def wide_index(launch: KernelLaunch) -> bool:
    place = list(launch.signature).index("IDX")
    return dict(launch.constants)[place,] == {"dtype": "int64"}


CHECKS: tuple[Callable[[Any], None], ...] = (refused, remembered, dropless, predicted, divided, told, launched)
