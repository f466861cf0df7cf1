"""What the blocks' autograd functions share: the gradients asked for, what those need, and none of a second order.

A block's backward is straight-line code for the gradients of all its arguments. Where some are not asked for (frozen
weights, an input outside autograd), `asked` gives the same function without the lines that only those need, and
`needed` keeps no tensor for them.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import InspectLoader
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
SECOND = (
    "the gradients of a compiled block cannot be differentiated once more (create_graph=True): a penalty on gradients "
    "needs weft.reference(spec), which computes the same by torch's own operations"
)


def once(backward: Function) -> Function:
    """A backward whose results raise where one differentiates through them; they are never taken for constants."""

    @functools.wraps(backward)
    def run(ctx: Any, *cotangents: Tensor | None) -> Any:
        with torch.no_grad():
            found = backward(ctx, *cotangents)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return found
        grads = found if isinstance(found, tuple) else (found,)
        return _Second.apply(len(grads), *grads, *_depended(ctx, cotangents))

    return run


def _depended(ctx: Any, cotangents: Iterable[Tensor | None]) -> list[Tensor]:
    """What gradients depend on: the cotangents, and what the forward was given. Raises RuntimeError where an input was
    not kept and no other leads to every parameter that it depends on."""
    held = [x for x in (*ctx.saved_tensors, *cotangents) if x is not None and x.requires_grad]
    held += [node.variable for node, _ in ctx.next_functions if hasattr(node, "variable")]
    reached = _parameters(torch.autograd.graph.get_gradient_edge(x).node for x in held)
    if not reached >= _parameters(node for node, _ in ctx.next_functions):
        raise RuntimeError(SECOND)
    return held


def _parameters(nodes: Iterable[Any]) -> set[Any]:
    """The nodes of the leaves below these nodes of autograd's graph."""
    seen: set[Any] = set()
    todo = [node for node in nodes if node is not None]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [below for below, _ in node.next_functions if below is not None]
    return {node for node in seen if hasattr(node, "variable")}


class _Second(torch.autograd.Function):
    """Gradients, and after them what they depend on. Raises RuntimeError where one goes back to that."""

    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor | None) -> Any:
        same = tuple(g if g is None else g.view_as(g) for g in given[:count])
        return same if count > 1 else same[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(SECOND)


def filled(
    grads: tuple[Tensor | None, ...], like: Iterable[tuple[torch.Size, torch.dtype, torch.device]]
) -> list[Tensor]:
    """The gradients of several results, zero for those that had none; like: of each result."""
    return [
        torch.zeros(shape, dtype=dtype, device=device) if g is None else g
        for g, (shape, dtype, device) in zip(grads, like)
    ]


def asked(ctx: Any, backward: Function) -> Function:
    """The backward for the gradients that autograd asks for, None in the place of any other."""
    if torch.compiler.is_compiling() or all(ctx.needs_input_grad):
        return backward
    return part(backward, tuple(ctx.needs_input_grad))[0]


def needed(ctx: Any, backwards: Sequence[Function], *tensors: Tensor) -> tuple[Tensor | None, ...]:
    """The first arguments of these backwards, None for those that no gradient asked for needs."""
    if torch.compiler.is_compiling() or all(ctx.needs_input_grad):
        return tensors
    if not any(ctx.needs_input_grad):
        return (None,) * len(tensors)
    read = frozenset[int]().union(*(part(f, tuple(ctx.needs_input_grad))[1] for f in backwards))
    return tuple(x if i in read else None for i, x in enumerate(tensors))


@functools.cache
def part(function: Function, wanted: tuple[bool, ...]) -> tuple[Function, frozenset[int]]:
    """A function of straight-line code without the lines that only unwanted results need, and the places of the
    arguments that it still reads. wanted: of the results, which; there may be more flags than results.

    Lines that are not a plain assignment (a loop, a change in place) count as changing every name they mention. What is
    left is compiled from the function's own file, line for line; where that is not at hand the function is the answer.
    """
    everything = frozenset(range(function.__code__.co_argcount))
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:
        return function, everything
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    *lines, last = definition.body
    assert isinstance(last, ast.Return)
    assert last.value is not None
    results = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    if all(wanted[: len(results)]):
        return function, everything
    kept = [x if flag else ast.Constant(None) for x, flag in zip(results, wanted)]
    last.value = ast.Tuple(kept, ast.Load()) if isinstance(last.value, ast.Tuple) else kept[0]
    lines, read = _live(lines, _names(last, ast.Load))
    places = [a.arg for a in definition.args.args]
    definition.body = [*_freed(lines, set(places)), last]
    tree = ast.fix_missing_locations(ast.Module([definition], []))
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    code = InspectLoader.source_to_code(tree, function.__code__.co_filename)
    body = next(c for c in code.co_consts if isinstance(c, CodeType))
    left = FunctionType(body, function.__globals__)
    return left, frozenset(i for i, name in enumerate(places) if name in read)


def _live(lines: Sequence[ast.stmt], need: set[str]) -> tuple[list[ast.stmt], set[str]]:
    """The lines that make the needed names, deletions as they are, and the names that those need from before."""
    kept: list[ast.stmt] = []
    for line in reversed(lines):
        if isinstance(line, ast.Delete):
            kept.append(line)
            continue
        made, loads = _names(line, ast.Store), _names(line, ast.Load)
        plain = _plain(line)
        if need & (made if plain else made | loads):
            kept.append(line)
            need = (need - made if plain else need) | loads
    return kept[::-1], need


def _plain(line: ast.stmt) -> bool:
    """Does a line nothing but bind names?"""
    if not isinstance(line, ast.Assign):
        return False
    names = all(isinstance(x, ast.Name | ast.Tuple | ast.Store) for t in line.targets for x in ast.walk(t))
    return names and not any(x.attr.endswith("_") for x in ast.walk(line.value) if isinstance(x, ast.Attribute))


def _freed(lines: Sequence[ast.stmt], have: set[str]) -> Iterator[ast.stmt]:
    """The lines, their deletions without names that are not there."""
    for line in lines:
        if isinstance(line, ast.Delete):
            line.targets = [t for t in line.targets if isinstance(t, ast.Name) and t.id in have]
            have -= {t.id for t in line.targets if isinstance(t, ast.Name)}
            if not line.targets:
                continue
        have |= _names(line, ast.Store)
        yield line


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {x.id for x in ast.walk(tree) if isinstance(x, ast.Name) and isinstance(x.ctx, context)}
