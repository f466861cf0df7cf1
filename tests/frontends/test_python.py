"""The Python API told something wrong: the YAML's own words as a SpecError, or a TypeError with the way out."""

import copy
from typing import Any

import pytest

import weft
from weft import api
from weft.errors import BackendError, SpecError, UsageError

DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 16, "layers": 1, "vocab": 11}
VALUES: dict[str, Any] = {
    "name": "tiny",
    "dims": DIMS,
    "blocks": {"a": {"kind": "attention", "pattern": "causal"}, "f": {"kind": "mlp"}},
    "stack": [{"repeat": "layers", "layer": ["a", "f"]}],
}


def changed(*where: Any, to: Any) -> dict[str, Any]:
    found = copy.deepcopy(VALUES)
    inside: Any = found
    for step in where[:-1]:
        inside = inside[step]
    inside[where[-1]] = to
    return found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: weft.Attention(patern="causal"), "unknown key 'patern' in Attention; did you mean 'pattern'?"),
        (lambda: weft.Attention(pattern=3), "Attention.pattern: expected text, found 3"),
        (lambda: weft.MLP(activaton="gelu"), "unknown key 'activaton' in MLP; did you mean 'activation'?"),
        (lambda: weft.MoE(top_k=0), "MoE.top_k: 0 must be at least 1"),
        (lambda: weft.Recurrence(output="h"), "missing key 'inputs' in Recurrence"),
        (lambda: weft.Opaque(3), "Opaque.module: an opaque block wraps a torch.nn.Module"),
        (lambda: weft.Model(**VALUES, norms="rms_norm"), "unknown key 'norms' in Model; did you mean 'norm'?"),
        (lambda: weft.Model(**changed("blocks", "a", to=weft.Attention)), "found the class Attention; make one of it"),
        (lambda: weft.Model(**changed("blocks", "f", to=weft.MLP)), "make one of it: MLP(...)"),
        (lambda: weft.compile(changed("blocks", "a", "kind", to="atention")), "did you mean 'attention'?"),
        (lambda: weft.compile(VALUES | {"weft": 2}), "a newer weft reads this file"),
        (lambda: weft.compile(VALUES | {3: 4}), "a key in the spec is a text, not 3"),
        (lambda: weft.compile({}), "missing key 'name'"),
        (lambda: weft.compile(changed("blocks", to=(1, 2))), "expected a map, found tuple"),
    ],
)
def test_a_part_told_wrong(make, words):
    with pytest.raises(SpecError) as error:
        make()
    assert words in str(error.value)


MODEL = weft.Model(**VALUES)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: weft.Attention("causal"), TypeError, "takes its keys by name: heads="),
        (lambda: weft.compile(weft.Model), TypeError, "the class Model; make one of it: Model(...)"),
        (lambda: weft.compile(weft.MLP()), TypeError, "a block goes into a model"),
        (lambda: weft.plan(None), TypeError, "a spec is a path, a weft.Model or a mapping, not NoneType"),
        (lambda: weft.reference(3), TypeError, "not int"),
        (lambda: api.check(b"x.yaml"), TypeError, "not bytes"),
        (lambda: weft.compile("weft: 1\nname: x\n"), UsageError, "the text of a spec"),
        (lambda: weft.compile(MODEL, memroy="4GB"), TypeError, "did you mean 'memory'?"),
        (lambda: weft.plan(MODEL, budget=3), TypeError, "no argument 'budget'; it takes source"),
        (lambda: weft.compile(MODEL, train="no"), TypeError, "train is True or False"),
        (lambda: weft.compile(MODEL, memory=[1]), TypeError, "memory is a number of bytes"),
        (lambda: weft.compile(MODEL, memory=-1), UsageError, "not an amount of memory"),
        (lambda: weft.compile(MODEL, memory=float("nan")), UsageError, "not an amount of memory"),
        (lambda: weft.compile(MODEL, target=90), TypeError, "a target is a name"),
        (lambda: weft.compile(MODEL, set=["seq=4"]), TypeError, "set is a mapping"),
        (lambda: weft.compile(MODEL, set={"seq": 4.0}), TypeError, "the size of seq"),
        (lambda: weft.compile(MODEL, set={"seq": True}), TypeError, "the size of seq"),
        (lambda: weft.compile(MODEL, set={"sq": 4}), UsageError, "did you mean 'seq'?"),
        (lambda: weft.plan(MODEL, sets="seq=4"), TypeError, "sets=['seq=4']"),
        (lambda: weft.plan(MODEL, mesh=3), TypeError, "mesh"),
        (lambda: weft.compile(MODEL, device="gpu"), UsageError, "no device of torch"),
        (lambda: weft.compile(MODEL, device="cuda:77"), BackendError, "there is no device cuda:77"),
    ],
)
def test_a_call_told_wrong(call, kind, words):
    with pytest.raises(kind) as error:
        call()
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_values_of_a_file_are_a_spec():
    """With and without its first key, and with parts of the builder in it."""
    want = weft.plan(MODEL)

    assert weft.plan(VALUES) == want
    assert weft.plan({"weft": 1, **VALUES}) == want
    assert weft.plan(changed("blocks", "a", to=weft.Attention(pattern="causal"))) == want


def test_a_mapping_that_holds_itself_is_refused():
    endless: dict[str, Any] = dict(VALUES)
    endless["blocks"] = endless

    with pytest.raises(SpecError):
        weft.plan(endless)


def test_an_error_of_a_file_tells_its_place_in_python_too(tmp_path):
    (tmp_path / "s.yaml").write_text("weft: 1\nname: x\nnorms: none\n")

    with pytest.raises(SpecError, match=r"s\.yaml:3:1: \[W0103\] unknown key 'norms'"):
        weft.compile(tmp_path / "s.yaml")
