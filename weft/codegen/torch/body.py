"""One function under construction: names, sizes, statements, and the `del` that follows each value's last use."""

import builtins
import copy
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from weft.codegen.torch.lines import WIDTH, Lines, fit, tuple_of
from weft.codegen.torch.sizes import MODULES, Sizes
from weft.codegen.torch.spelling import ATOM, TORCH_DTYPE, Src, held, plain
from weft.ir.names import identifier, provenance
from weft.ir.types import FLOATS, Dims, Graph, Node, Type, Val, promote

SHORT = 44  # characters of an expression that may stand inside the next one instead of getting a name
_WORD = re.compile(r"[A-Za-z_]\w*")
_OWN = ("ctx", "run", "saved", "readers", "fused", "wanted", "asked", "filled", "needed")  # of autograd functions
RESERVED = {*keyword.kwlist, *dir(builtins), "torch", "math", "self", *_OWN, *MODULES}


@dataclass
class File:
    """What a file's functions share: constants for frozen sizes and objects such as attention layouts."""

    sizes: Sizes
    constants: dict[str, int] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)  # source -> name
    functions: dict[str, str] = field(default_factory=dict)  # source with a hole for the name -> name
    floats: frozenset[str] = frozenset({"f32"})  # the float dtypes that occur
    trusted: frozenset[str] = frozenset()  # index inputs whose range the model has checked

    @property
    def mixed(self) -> bool:
        """Are dtypes written out? Not where all floats are f32 (or all f64): such code runs in any one dtype."""
        return len(self.floats) > 1 or not self.floats <= {"f32", "f64"}

    @property
    def float(self) -> str:
        """The one float dtype of a file that is not mixed."""
        return min(self.floats, default="f32")

    def constant(self, dim: str) -> str:
        """The module constant of a frozen dim."""
        name = self.sizes.names[dim].upper()
        self.constants[name] = self.sizes.frozen(dim)
        return name

    def object(self, hint: str, source: str) -> str:
        """A module-level object, made once per distinct source."""
        if source not in self.objects:
            self.objects[source] = identifier(hint, {n.lower() for n in self.objects.values()}).upper()
        return self.objects[source]

    def function(self, hint: str, lines: list[str]) -> str:
        """A module-level function, printed once per distinct text; `{}` in its first line stands for the name."""
        text = "\n".join(lines)
        if text not in self.functions:
            self.functions[text] = identifier(hint, set(self.functions.values()))
        return self.functions[text]

    def header(self) -> list[str]:
        """The lines that define them: constants, functions, objects."""
        lines = [f"{name} = {n}" for name, n in sorted(self.constants.items())]
        for text, name in self.functions.items():
            lines += ["", "", *text.replace("{}", name, 1).split("\n"), "", ""]
        for source, name in self.objects.items():
            lines += f"{name} = {source}".split("\n") if "\n" in source else fit(f"{name} = {source}")
        return lines


class Body:
    """Statements of one function over a graph's values."""

    def __init__(
        self, file: File, inputs: Sequence[Val], outputs: Iterable[Val], nodes: Sequence[Node], depth: int = 1
    ) -> None:
        self.file, self.sizes = file, file.sizes
        self.lines = Lines()
        self.lines.depth = depth
        self.taken: set[str] = set(RESERVED)
        self.env: dict[str, Src] = {}
        self.inputs = tuple(inputs)
        self.made = {v.name: n for n in nodes for v in n.outs}
        self.trusted = file.trusted
        self.outputs = {v.name for v in outputs}
        self.uses = Counter(v.name for n in nodes for v in n.ins)
        self.uses.update(v.name for v in outputs)
        self.holders: dict[str, set[str]] = {}  # name made here -> the values whose source mentions it, "": none
        self.big: set[str] = set()
        self.runtime: dict[str, str] = {}  # run-time dim -> variable
        self.derived: dict[str, tuple[str, str]] = {}  # other dim -> variable, source
        self.coordinates: dict[tuple[str, str], str] = {}
        self.sent: dict[tuple[str, str], str] = {}  # value of experts, their dim -> name of the rows of each
        self.head: list[str] = []
        self.anchor = self._anchor_type = ""
        self.given: frozenset[str] = frozenset()  # run-time dims that are arguments of their own
        self.src = self.noted = ""
        self.printed: list[tuple[int, tuple[str, ...]]] = []  # first line of a statement, the nodes that it runs
        self.next_reads: frozenset[str] = frozenset()
        self.taken |= {n for d, n in file.sizes.names.items() if file.sizes.number(d) is None}
        for v in inputs:
            name = self.mint(v.name)
            self.env[v.name] = Src(name, ATOM, v.dims, v.dtype)
            if not self.anchor or (v.dtype in FLOATS and self._anchor_type not in FLOATS):
                self.anchor, self._anchor_type = name, v.dtype

    def child(self, graph: Graph, env: dict[str, Src]) -> "Body":
        """The same function inside a loop: values of `graph`, with what its inputs stand for; statements go on here."""
        inner = copy.copy(self)
        inner.env, inner.outputs = dict(env), {v.name for v in graph.outputs}
        inner.uses = Counter(v.name for n in graph.nodes for v in n.ins)
        inner.uses.update(v.name for v in graph.outputs)
        inner.made = {v.name: n for n in graph.nodes for v in n.outs}
        inner.holders, inner.big, inner.trusted, inner.printed = {}, set(), frozenset(), []
        return inner

    def mint(self, hint: str) -> str:
        name = identifier(hint, self.taken)
        self.taken.add(name)
        return name

    def arguments(self) -> list[str]:
        return [self.env[v.name].text for v in self.inputs]

    def size(self, dim: str) -> Src:
        """The size of a dim as a Python integer."""
        number = self.sizes.number(dim)
        if number is not None:
            return Src(self.file.constant(dim), ATOM, None, "int", number)
        dim = self.sizes.alias(dim)
        if dim in self.sizes.runtime:
            self.runtime.setdefault(dim, self.sizes.names[dim])
            return Src(self.runtime[dim], ATOM, None, "int")
        if dim not in self.derived:
            name = self.sizes.names[dim]
            names = {d: self.size(d) for d in self.sizes.base(dim)}
            self.derived[dim] = name, self.sizes.spelled(self.sizes.expression(dim), self, names).text
        return Src(self.derived[dim][0], ATOM, None, "int")

    def shape(self, dims: Dims) -> str:
        return ", ".join(self.size(d).text for d in dims)

    def opening(self, *extra: str) -> list[str]:
        """Statements that make the sizes and coordinates that the body, or `extra` source after it, mentions."""
        said = set(_WORD.findall("\n".join([*self.lines.lines, *extra])))
        head = [line for line in self.head if line.split(" = ")[0] in said]
        said |= set(_WORD.findall("\n".join(head)))
        derived = [f"{name} = {source}" for name, source in self.derived.values() if name in said]
        said |= set(_WORD.findall("\n".join(derived)))
        by_source: dict[str, list[tuple[int, str]]] = {}
        out: list[str] = []
        for dim, name in sorted((d, n) for d, n in self.runtime.items() if n in said):
            where = [(v, at) for v in self.inputs if (at := self.sizes.reads(v.dims, dim)) is not None]
            v, (at, more) = min(where, key=lambda w: bool(w[1][1]), default=(None, (0, "")))
            if v is not None and more and dim not in self.given:
                out.append(f"{name} = {self.env[v.name].text}.shape[{at}]{more}")
            elif v is not None and not more:
                by_source.setdefault(self.env[v.name].text, []).append((at, name))
            elif dim not in self.given:
                raise ValueError(f"no input of the function has the run-time dim {dim}")
        for source, found in by_source.items():
            found.sort()
            if [at for at, _ in found] == list(range(len(found))) and len(found) > 1:
                out.append(f"{', '.join(n for _, n in found)} = {source}.shape[:{len(found)}]")
            else:
                out += [f"{name} = {source}.shape[{at}]" for at, name in found]
        return out + derived + head

    def take_after(self, name: str) -> None:
        """Let a tensor that is no value of the graph say device and dtype; an empty name changes nothing."""
        if name:
            self.taken.add(name)
            self.anchor, self._anchor_type = name, self.file.float

    def device(self) -> str:
        return f"{self.anchor}.device"

    def dtype(self, name: str) -> str:
        """The source of a torch dtype: that of an operand where all floats have the same one."""
        if name in FLOATS and not self.file.mixed and self._anchor_type in FLOATS:
            return f"{self.anchor}.dtype"
        return TORCH_DTYPE[name]

    def compute(self, *dtypes: str) -> str:
        """The dtype in which a map over these dtypes is computed."""
        return promote("f32", *dtypes) if self.file.mixed else self.file.float

    def bind(self, hint: str, src: Src) -> Src:
        """Give an expression a name."""
        name = self.mint(hint)
        dims = src.dims or ()
        self.lines.add(f"{name} = {src.text}", self.comment(dims) if src.dims is not None else "")
        self.holders[name] = {""}
        if self.large(dims):
            self.big.add(name)
        return Src(name, ATOM, src.dims, src.dtype)

    def coordinate(self, dim: str, dtype: str = "i64") -> Src:
        """0 .. n-1 along a dim, made once per function."""
        alias = self.sizes.alias(dim)
        key = alias, dtype
        if key not in self.coordinates:
            name = self.mint(f"i_{alias}" if dtype == "i64" else f"i_{alias}_{dtype}")
            kind = "" if dtype == "i64" else f", dtype={self.dtype(dtype)}"
            self.head.append(f"{name} = torch.arange({self.size(dim).text}{kind}, device={self.device()})")
            self.coordinates[key] = name
        return Src(self.coordinates[key], ATOM, (dim,), dtype)

    def large(self, dims: Iterable[str]) -> bool:
        """Does it grow with a run-time size? Only such values are freed by hand."""
        return any(d not in self.sizes.names or self.sizes.number(d) is None for d in dims)

    def comment(self, dims: Dims) -> str:
        return f"[{' '.join(self.sizes.names.get(d, d) for d in dims)}]"

    def loose(self, v: Val) -> Src:
        """The value's source; it may lack dims along which it is constant, or be a number."""
        return self.env[v.name]

    def atom(self, v: Val) -> Src:
        """The value as an atom, possibly lacking dims."""
        src = self.env[v.name]
        return replace(src, text=src.at(ATOM), rank=ATOM) if not src.number else src

    def argument(self, v: Val) -> str:
        """The value with exactly its dims, as it may stand among arguments."""
        src = self.env[v.name]
        return src.text if src.dims == v.dims and not src.number else self.full(v)

    def full(self, v: Val) -> str:
        """The value with exactly its dims, as an atom."""
        src = self.env[v.name]
        if src.number:
            return self.filled(src, v.type)
        if src.dims == v.dims:
            return src.at(ATOM)
        aligned = src.aligned(v.dims)
        if set(src.dims or ()) == set(v.dims):
            return aligned.at(ATOM)
        return f"{aligned.at(ATOM)}.expand({self.shape(v.dims)})"

    def filled(self, src: Src, type_: Type) -> str:
        """A tensor of one number."""
        shape = tuple_of(self.size(d).text for d in type_.dims) if type_.dims else "()"
        dtype = f"dtype={self.dtype(type_.dtype)}, device={self.device()}"
        if src.value == 0:
            return f"torch.zeros({shape}, {dtype})"
        number = held(src, self.dtype(type_.dtype)) if type_.floating else src.text
        return f"torch.full({shape}, {number}, {dtype})"

    def put(self, v: Val, src: Src, node: Node | None = None, inline: bool = True) -> None:
        """Record what a value is: an alias, an expression inside its only reader, or a statement."""
        once = inline and self.uses[v.name] == 1 and v.name not in self.outputs and self._may_inline(v, src)
        if not self.uses[v.name] or src.number or plain(src.text) or once:
            self.env[v.name] = src
        else:
            self.env[v.name] = self.statement(v, src)
        self._hold(v.name, self.env[v.name].text)

    def alias(self, v: Val, src: Src) -> None:
        """Another name for what `src` says: no statement. An expression gets a name, unless its one reader is next."""
        if not src.number and not plain(src.text) and not (self.uses[v.name] == 1 and self._may_inline(v, src)):
            src = self.statement(v, src)
        self.env[v.name] = src
        self._hold(v.name, src.text)

    def statement(self, v: Val, src: Src) -> Src:
        name = self.mint(v.name)
        self.note()
        text, p = src.text, src.product
        if p is not None and p.tail and text == p.said() and len(text) > WIDTH - 16:
            self.lines.add(f"{name} = {replace(p, tail='').said()}")
            text = f"{name}{p.tail}"
        self.lines.add(f"{name} = {text}", self.comment(src.dims if src.dims is not None else v.dims))
        self.holders[name] = set()
        if self.large(v.dims):
            self.big.add(name)
        return replace(src, text=name, rank=ATOM, product=None)

    def assign(self, vals: Sequence[Val], text: str, dims: Sequence[Dims] | None = None, unused: int = 0) -> list[Src]:
        """`a, b = text`: several results of one call; values nobody reads, and `unused` more at the end, become `_`."""
        names = [self.mint(v.name) if self.uses[v.name] else "_" for v in vals]
        self.note()
        shown = self.comment(vals[0].dims) if len(vals) == 1 else ""
        self.lines.add(f"{', '.join([*names, *['_'] * unused])} = {text}", shown)
        out: list[Src] = []
        for i, (v, name) in enumerate(zip(vals, names)):
            src = Src(name, ATOM, dims[i] if dims else v.dims, v.dtype)
            if name != "_":
                self.env[v.name] = src
                self.holders[name] = {v.name}
                if self.large(v.dims):
                    self.big.add(name)
            out.append(src)
        return out

    def named(self, v: Val) -> str:
        """The value under a name of its own, full shape."""
        text = self.full(v)
        if text.isidentifier():
            return text
        src = self.statement(v, Src(text, ATOM, v.dims, v.dtype))
        self.env[v.name] = src
        self._hold(v.name, src.text)
        return src.text

    def _may_inline(self, v: Val, src: Src) -> bool:
        return len(src.text) <= (SHORT if src.product is None else 2 * SHORT) and v.name in self.next_reads

    def note(self) -> None:
        """The spec line, where it changes."""
        if self.src and self.src != self.noted:
            self.lines.note(provenance(self.src))
        self.noted = self.src

    def _hold(self, value: str, text: str) -> None:
        for word in set(_WORD.findall(text)):
            if word in self.holders:
                self.holders[word].add(value)

    def own(self, name: str, v: Val) -> None:
        """A variable that a statement made holds this value."""
        self.holders.setdefault(name, set()).add(v.name)
        if self.large(v.dims):
            self.big.add(name)

    def release(self, names: Iterable[str]) -> None:
        """These values are not read again: `del` what only they held."""
        gone = {"", *names}
        dead: list[str] = []
        for name, holding in list(self.holders.items()):
            holding -= gone
            if not holding:
                del self.holders[name]
                if name in self.big:
                    dead.append(name)
        while dead:
            n = len(dead)
            while len(f"del {', '.join(dead[:n])}") + 4 * self.lines.depth > WIDTH:
                n -= 1
            self.lines.add(f"del {', '.join(dead[:n])}")
            dead = dead[n:]


def floats(graph: Graph) -> set[str]:
    """The float dtypes that occur in a graph."""
    vals = [*graph.inputs, *(v for n in graph.nodes for v in (*n.ins, *n.outs))]
    return {v.dtype for v in vals if v.dtype in FLOATS}
