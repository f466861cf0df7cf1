"""Faults that were mended, as texts of the source and what they become: each the essence of what stood there before."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """In a file, below weft/, the one `old` becomes `new`."""

    file: str
    old: str
    new: str

    def plant(self, root: Path) -> None:
        path = root / "weft" / self.file
        text = path.read_text()
        assert text.count(self.old) == 1, f"{self.file} has {text.count(self.old)} of {self.old!r}"
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Planted:
    """A fault. wants: expressions that the drawn options (`key=value`, a line each) of its cases fit; kernels: do cases
    run theirs in the interpreter?"""

    name: str
    what: str
    edits: tuple[Edit, ...]
    wants: tuple[str, ...] = ()
    kernels: bool = False


TILES, ATTENTION, SCOPE = "codegen/runtime/attention_tiles.py", "codegen/torch/attention.py", "frontends/lower/scope.py"
LOWERED, PROJECTED = "frontends/blocks/attention.py", "frontends/blocks/projected.py"
FAULTS = (
    Planted(
        "constant_score",
        "a score's slope that is a number is spread as if it were a tensor",
        (Edit(TILES, "torch.as_tensor(y, dtype=s.dtype, device=s.device).expand_as(s)", "y.expand_as(s)"),),
        (r"attention\.score=(0|s \+ 1|2\*s|s - 0\.1.*|s/width \+ h)$",),
    ),
    Planted(
        "metadata",
        "a mask is printed without what it reads of segments and padding",
        (Edit(ATTENTION, 'symbol("i_k"), symbol("i_h"), known)', 'symbol("i_k"), symbol("i_h"))'),),
        (r"attention\.pattern=.*(same_segment|valid)",),
    ),
    Planted(
        "masked_score",
        "what hides a pair is added to its score, be that not finite",
        (Edit(TILES, "torch.where(x.mask == -torch.inf, -torch.inf, s + x.mask)", "s + x.mask"),),
        (r"attention\.score=(.*log\(1 \+ q - k|s - sqrt|s \+ log)", r"attention\.pattern=(causal|window)"),
    ),
    Planted(
        "seq_in_a_score",
        "seq in a score is left open, and printed as 0",
        (
            Edit(
                SCOPE,
                "for d, n in self.dims.most.items()} | (names or {})",
                'for d, n in self.dims.most.items()} | {"seq": self.dims.sizes["seq"]} | (names or {})',
            ),
            Edit(ATTENTION, "literal(file.sizes.frozen(s.name[2:]))", "literal(file.sizes.number(s.name[2:]) or 0)"),
        ),
        (r"attention\.score=.*/seq",),
    ),
    Planted(
        "negative_scale",
        "a scale below 0 meets scores that -inf has hidden",
        (Edit("codegen/runtime/attention_core.py", "if scale > 0 else", "if True else"),),
        (r"attention\.scale=-1/8",),
    ),
    Planted(
        "comma_in_parentheses",
        "a long line that is broken gets a comma in parentheses that only group",
        (Edit("codegen/torch/lines.py", "comma = _separates(outline, start, body)", "comma = True"),),
        (r"moe\.top_k=3",),
    ),
    Planted(
        "capacity_of_a_step",
        "a capacity of seq is that of the step, which is one token long",
        (
            Edit(
                "frontends/capacity.py",
                "return not _surely(normal(capacity",
                "return True or not _surely(normal(capacity",
            ),
            Edit(
                "codegen/package/stepping.py",
                "table[dim] = size if dim in cut else size.xreplace",
                "table[dim] = size if dim in cut or size == time else size.xreplace",
            ),
        ),
        (r"moe\.(capacity=seq$|factor=(1\.3333|4\.0|2\.0|1\.0)$)",),
    ),
    Planted(
        "capacity_of_functions",
        "what a size's max and min give is SymPy's own, which nothing prints",
        (
            Edit("frontends/expressions.py", "normal(build(*map(normal, args)))", "build(*map(normal, args))"),
            Edit(
                "frontends/expressions.py",
                "        return FUNCTIONS[function][0](*args)",
                "        import sympy\n\n        return sympy.Max(*args) if function == 'max' else sympy.Min(*args)",
            ),
            Edit("frontends/capacity.py", "found = normal(dims", "return (dims"),
        ),
        (r"moe\.capacity=(max|min)",),
    ),
    Planted(
        "padded_experts",
        "experts that drop nothing are padded to as many tokens as a sequence has",
        (Edit("frontends/blocks/moe.py", 'if full else ""', 'if True else ""'),),
        (r"^moe\.capacity=seq$", r"\A(?!(?s:.*)(kind=(attention|recurrence|opaque)|moe\.factor|moe\.top_k=[34]))"),
    ),
    Planted(
        "symbols_are_booleans",
        "symbols vanish from what bounds an index",
        (
            Edit(
                "codegen/torch/memory.py",
                "for a in (e.args[1:] if isinstance(e, where) else e.args)]",
                "for a in e.args if not isinstance(a, sp.logic.boolalg.Boolean)]",
            ),
            Edit("codegen/torch/memory.py", "if known and len(known)", "if len(known)"),
        ),
        (r"projection\.heads=2",),
    ),
    Planted(
        "globals_without_rotary",
        "rows of global tokens are not turned",
        (
            Edit(
                PROJECTED,
                "if not block.rotary:",
                'if not block.rotary or name.endswith("_global"):',
            ),
        ),
        (r"globals\.tokens", r"attention\.rotary"),
    ),
    Planted(
        "globals_of_a_short_run",
        "global tokens are cut out of a run that may have fewer",
        (
            Edit(
                LOWERED,
                'first = s.gather("first", x, leading, at=s.length)',
                "first = s.g.part(x, s.length, some, 0)",
            ),
        ),
        (r"globals\.tokens=[23]",),
    ),
    Planted(
        "any_target",
        "tokens and targets that do not exist are taken",
        (Edit("codegen/runtime/module.py", "    bounded(inputs, ranges)\n    return sizes", "    return sizes"),),
    ),
    Planted(
        "experts_of_a_prompt",
        "a prompt's tokens each gather their expert's whole matrices",
        (Edit("passes/decode/slots.py", 'n.op.core != "pointwise" and (product', "False and (product"),),
        (r"moe\.(capacity|factor)=(2|0\.5|1\.0|1\.25|ceil.*|seq % 2 \+ 1)$",),
    ),
    Planted(
        "choice_in_a_formula",
        "a if c else b is documented and refused",
        (Edit("ir/formula/reader.py", "body=a, orelse=b):", "body=a, orelse=b) if d < 0:"),),
        (r"activation=.* if ",),
    ),
    Planted(
        "cell_without_parameters",
        "what a kernel computes in is told by a function that Triton's compiler refuses",
        (
            Edit(
                "codegen/skeletons/common/elementwise.py",
                "@triton.constexpr_function\ndef accumulator(dtype):",
                "@triton.jit\ndef accumulator(dtype):",
            ),
        ),
        (r"cell=[0278]$",),
    ),
    Planted(
        "no_next",
        "an output cannot name a state after the step",
        (Edit("frontends/blocks/recurrence.py", '"output", next=after)', '"output")'),),
        (r"cell=1[78]$",),
    ),
    Planted(
        "narrow_statistics",
        "statistics are of the dtype that the model was moved to",
        (Edit("codegen/skeletons/common/writer/wrapper.py", "elif v.name in self.wide and", "elif False and"),),
        (r"kind=attention",),
    ),
    Planted(
        "narrow_index",
        "operands that lie along lanes alone, and what a body reads besides, do not count for a launch's index",
        tuple(
            Edit(f"codegen/skeletons/{name}/launch.py", old, new)
            for name, old, new in (
                ("scan", "per_step, per_lane, outs, ends, x)", "per_step, outs)"),
                ("pointwise", "ins, outs, x)", "ins, outs)"),
                ("rowwise", "per_row, parts, x)", "per_row, parts)"),
            )
        ),
        (r"^cell=[2345]$",),
    ),
    Planted(
        "place_after_a_sum",
        "dropout of what is summed asks for an element's place, which its hole is not given",
        (Edit("codegen/skeletons/common/writer/maps.py", 'known = "i" in hole.args and', "known ="),),
        (r"kind=moe", r"sublayer\.residual=none", r"sublayer\.dropout", r"moe\.top_k=[34]"),
        kernels=True,
    ),
    Planted(
        "all_reduces",
        "terms of a sum are each reduced over the mesh",
        (Edit("ir/placement.py", "if not any(partial) or not all(", "if True or not all("),),
        (r"kind=attention",),
    ),
    Planted(
        "peak_of_operators",
        "a peak leaves out what operators take inside themselves",
        (Edit("codegen/measure/profile.py", 'torch.get_num_threads() if target.kind == "cpu" else 0', "0"),),
        (r"kind=attention",),
    ),
    Planted(
        "peak_of_constants",
        "a peak leaves out tensors that are made of numbers, which no dispatch shows on meta",
        (Edit("codegen/measure/workspace.py", "if func in (torch.tensor, torch.as_tensor) and", "if False and"),),
        (r"plan\.block=2", r"most=12", r"plan\.window=1"),
    ),
    Planted(
        "silent_onnx",
        "an ONNX file does not say that its floats are not the spec's",
        (Edit("codegen/onnx/export.py", 'if set(policy.values()) == {"f32"}:', "if policy:"),),
        (r"model\.dtype=",),
    ),
)
