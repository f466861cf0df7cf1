"""A plan as tables for people. Everything is read from the plan document, so a saved `plan.json` shows the same."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft.passes.fusion.legality import Reason
from weft.units import show_bytes, show_count

Document = Mapping[str, Any]
HEADERS = ("block", "op", "kernel", "launches", "params", "FLOPs", "bytes", "density", "kept", "recompute")


def text(found: Document) -> str:
    """What `weft.api.explain` found, for people."""
    if "values" in found:
        values = [(v["path"], v["value"], v["origin"]) for v in found["values"]]
        return _table(values, ("value", "is", "from"))
    parts = [table(found["plan"])]
    parts += [kernels(found["kernels"])] if "kernels" in found else []
    parts += ["\n".join(lines)] if (lines := [*recurrences(found["plan"]), *refused(found)]) else []
    parts += [found["kernels_note"]] if "kernels_note" in found else []
    return "\n\n".join(parts)


def _table(rows: Iterable[Sequence[object]], headers: Sequence[str], **more: Any) -> str:
    """Lines of columns, numbers as they are written."""
    from tabulate import tabulate  # `weft check` prints none

    return tabulate(rows, headers, disable_numparse=True, **more)


def rows(plan: Document) -> list[dict[str, Any]]:
    """One row per region of each block's forward, as numbers: what `--json` holds.

    density: of an attention's pattern. kept: bytes kept for the backward by the mode most layers use. recompute: the
    modes of the block's layers and how many layers each has."""
    out: list[dict[str, Any]] = []
    for block in plan["blocks"]:
        seen = {a["node"]: a for a in block.get("attention", ())}
        modes = {m["mode"]: m["layers"] for m in block.get("recompute", ()) if m["layers"]}
        most = max(block.get("recompute", ()), key=lambda m: m["layers"], default={})
        kept = dict(most.get("keeps", {}))
        for region in block["forward"]["regions"]:
            attention = next((seen[n] for n in region["nodes"] if n in seen), {})
            out.append(
                {
                    "block": block["name"],
                    "calls": block["calls"],
                    "op": list(region["nodes"]),
                    "kernel": region["kernel"],
                    "skeleton": region.get("skeleton", ""),
                    "why": region.get("why", ""),
                    "launches": region.get("launches", 1),
                    "parameters": region.get("parameters", 0),
                    "flops": region["flops"],
                    "bytes": region["bytes"],
                    "density": attention.get("density"),
                    "kept": sum(kept.get(n, 0) for n in region["nodes"]),
                    "recompute": modes,
                    "src": region.get("src", ""),
                }
            )
    return out


def table(plan: Document) -> str:
    """The rows as a table, counts of one call of each block, and a line of totals."""
    lines: list[Sequence[str]] = []
    last = ""
    for r in rows(plan):
        title = f"{r['block']} x{r['calls']}" if r["calls"] > 1 else r["block"]
        modes = ", ".join(f"{m} x{n}" if r["calls"] > 1 else m for m, n in r["recompute"].items())
        lines.append(
            (
                "" if title == last else title,
                " + ".join(r["op"]),
                _kernel(r),
                str(r["launches"]),
                show_count(r["parameters"]) if r["parameters"] else "",
                show_count(r["flops"]),
                show_bytes(r["bytes"]),
                "" if r["density"] is None else _percent(r["density"]),
                show_bytes(r["kept"]) if r["kept"] else "",
                "" if title == last else modes,
            )
        )
        last = title
    return f"{_table(lines, HEADERS)}\n\n{summary(plan)}"


def kernels(found: Sequence[Document]) -> str:
    """What the compiler says of each launch: rows as `weft.autotune.inspection.Inspected.data` gives them.

    occupancy: programs that a multiprocessor holds at once, and the share of its warps that they are."""
    shown: list[Sequence[str]] = []
    for r in found:
        if r["reason"]:
            shown.append((r["kernel"], r["function"], "", "", "", "", "", "", f"no: {r['reason']}"))
            continue
        last = max((i for i, n in enumerate(r["grid"]) if n > 1), default=0)
        grid = " x ".join(f"{n:,}" for n in r["grid"][: last + 1])
        products = ", ".join(f"{r[n]} {n}" for n in ("wgmma", "mma") if r[n])
        numbers = (grid, str(r["threads"]), str(r["regs"]), str(r["stack"] or ""), f"{r['shared']:,}")
        occupancy = f"{r['occupancy']} ({_percent(r['busy'])})"
        shown.append((r["kernel"], r["function"], *numbers, occupancy, products if r["fits"] else "no: does not fit"))
    headers = ("kernel", "launches", "grid", "threads", "registers", "stack", "shared", "occupancy", "products")
    return _table(_once(shown), headers)


def refused(found: Document) -> list[str]:
    """A line for each launch that the target cannot have, with the compiler's own words."""
    out: list[str] = []
    for r in (r for r in found.get("kernels", ()) if not r["fits"]):
        why = f"does not compile: {r['reason']}" if r["reason"] else "does not fit"
        out.append(f"on {r['target']} {' '.join(n for n in (r['kernel'], r['function']) if n)} {why}")
    return out


def summary(plan: Document) -> str:
    """Parameters, work of a step, peak memory and where it is reached."""
    totals, memory = plan["totals"], plan["memory"]
    lines = [f"{plan['name']}: {plan['parameters']:,} parameters, {_sizes(plan)}, target {plan['target']['name']}"]
    for side, t in totals.items():
        lines.append(
            f"{side}: {show_count(t['flops'])}FLOP, {show_bytes(t['bytes'])} moved, "
            f"{t.get('launches', t['kernels']):,} launches, modelled {_time(t['microseconds'])}"
        )
    peak = f"peak: {show_bytes(memory['peak'])} ({memory['profile']})"
    if "at" in memory:
        at = memory["at"]
        peak += f", in the {at['side']} of {at['block']}; at least {show_bytes(memory['smallest'])} is needed"
    lines.append(peak)
    for s in plan.get("states", ()):
        rows = f"{s['layers']} x {s['keep']:,} rows of {s['name']}"
        lines.append(f"memory: {rows} from segment to segment, {show_bytes(s['bytes'])} in and as much out")
    if "decode" in plan:
        lines.append(decodes(plan["decode"].get("why", "")) + _kept(plan["decode"]))
    return "\n".join(lines)


def _kept(decode: Document) -> str:
    """What a step keeps of a position, where that is less than keys and values."""
    if "bytes_kept" not in decode:
        return ""
    kept, whole = (show_bytes(decode[k]) for k in ("bytes_kept", "bytes_of_keys_and_values"))
    return f"; a position leaves {kept}, where keys and values would be {whole}"


def decodes(why: str) -> str:
    """Whether there is a step, in one line."""
    return f"decodes: no, {why}" if why else "decodes: prefill and step"


def memory(plan: Document) -> str:
    """What the peak is made of."""
    names = {
        "parameters_and_inputs": "parameters and inputs",
        "state": "state of the optimizer",
        "kept_by_earlier_blocks": "kept by earlier blocks",
        "gradients_of_later_blocks": "gradients of later blocks",
        "working": "the block itself",
        "step": "step of the optimizer, all in all",
        "peak": "peak",
        "budget": "budget",
        "not_counted": "not counted: state of adamw (--optimizer adamw)",
    }
    found = plan["memory"] | {k: n for k, n in plan["memory"]["optimizer"].items() if n}
    shown = [(text, f"{found[key]:,}") for key, text in names.items() if found.get(key) is not None]
    return _table(shown, ("bytes", ""), colalign=("left", "right"))


def recurrences(plan: Document) -> list[str]:
    """How each recurrence of tensors runs, and why not otherwise."""
    found = [d for d in plan["decisions"] if d["pass"] == "chunk"]
    said = [(d, "; ".join(f"not {r['choice']}: {r['reason']}" for r in d["rejected"])) for d in found]
    return [f"{d['subject']} ({d['src']}) runs {d['choice']} ({others})" for d, others in said]


def layers(plan: Document) -> str:
    """The recompute mode of each stretch of equal layers, with why not another."""
    shown: list[Sequence[str]] = []
    for d in plan["decisions"]:
        if d["pass"] == "recompute":
            numbers = d.get("numbers", {})
            others = ", ".join(f"{r['choice']}: {r['reason']}" for r in d.get("rejected", ()))
            shown.append(
                (d["subject"], d["choice"], show_bytes(numbers.get("bytes", 0)), _time(numbers["microseconds"]), others)
            )
    return _table(shown, ("layers", "mode", "kept", "extra time", "instead"))


def verdicts(plan: Document) -> str:
    """Every adjacent pair of every block, forward and backward, with its one verdict."""
    shown: list[Sequence[str]] = []
    for block in plan["blocks"]:
        halves = {"forward": block["forward"]} | {f"backward, {m}": h for m, h in block.get("backward", {}).items()}
        halves |= block.get("further", {})
        for where, half in halves.items():
            shown += [
                (f"{block['name']} {where}", f"{p['producer']} + {p['consumer']}", _verdict(p)) for p in half["pairs"]
            ]
    return _table(_once(shown), ("half", "pair", "verdict"))


def collectives(plan: Document) -> str:
    """What a mesh splits, how many collectives it takes in a step, and of how many bytes."""
    mesh = plan["mesh"]
    lines = [
        f"one of {mesh['devices']} devices, with its share of {mesh['parameters']:,} parameters and of all numbers"
    ]
    for axis, size in mesh["axes"].items():
        left = f"; left whole, not a multiple: {', '.join(mesh['whole'][axis])}" if axis in mesh["whole"] else ""
        lines.append(f"{axis}={size} splits {', '.join(mesh['dims'][axis])}{left}")
    shown = [
        (name, f"{t['places']:,}", f"{t['times']:,}", show_bytes(t["bytes"])) for name, t in mesh["totals"].items()
    ]
    table = _table(shown, ("collective", "places", "times", "bytes"))
    return "\n".join([*lines, "", table if shown else "no collective"])


def _verdict(pair: Document) -> str:
    if pair["verdict"] == "fused":
        return f"fused, saves {pair['microseconds']:.2f} us"
    if pair["verdict"] == "slower":
        return f"legal, but {pair['microseconds']:.2f} us slower"
    numbers = ", ".join(f"{k} {v}" for k, v in pair.get("numbers", {}).items())
    return f"{pair['verdict']} ({numbers})" if numbers else pair["verdict"]


def _once(shown: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """First cells only where they change."""
    out, last = list[Sequence[str]](), ""
    for first, *rest in shown:
        out.append(("" if first == last else first, *rest))
        last = first
    return out


def _kernel(row: Document) -> str:
    if row["kernel"] != "torch" or row["why"] == Reason.TORCH:
        return row["kernel"]
    return f"torch ({row['skeleton'] or 'no skeleton'})"


def _percent(x: float) -> str:
    return f"{100 * x:.3g} %"


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1e3 else f"{microseconds:.3g} us"


def _sizes(plan: Document) -> str:
    return ", ".join(f"{d} {plan['dims'][d]:,}" for d in plan["runtime"])
