"""What `weft check` says of a spec that is no error and yet probably not meant."""

import json

import pytest

from weft import api, cli
from weft.errors import SpecError
from weft.frontends.load import load_text
from weft.frontends.schema import Model

DIMS = {"batch": 2, "seq": 8, "width": 8, "heads": 2, "head": 4, "inner": 6, "vocab": 11}


def notes(block, dims=None, **keys):
    spec = {"name": "tiny", "dims": {**DIMS, **(dims or {})}, "stack": [{"layer": [{"block": block}, {"block": MLP}]}]}
    found = api.check(Model.model_validate(spec | keys))["warnings"]
    return [f"{'.'.join(map(str, w['path']))}: {w['message']}" for w in found]


MLP = {"kind": "mlp"}
EMPTY = ["window(0)", "false", "window(2) and k > q", "heads(causal, false)", "window(0) and same_segment", "k < 0"]
AHEAD = ["all", "band(1, 1)", "heads(causal, all)", "causal or cols(2)", "prefix(3)", "valid", "not causal"]
FINE = ["causal", "strict_causal", "window(1)", "causal and valid", "chunks_before(4)", "causal and strided(3)"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [(p, "no query sees a key") for p in EMPTY] + [(p, "sees later ones") for p in AHEAD] + [(p, "") for p in FINE],
)
def test_a_pattern_that_sees_nothing_or_what_is_to_be_predicted(pattern, said):
    found = notes({"kind": "attention", "pattern": pattern})

    assert len(found) == bool(said)
    assert all(said in note and note.startswith("stack.0.layer.0.block.pattern: ") for note in found)


def test_a_classifier_may_see_everything():
    assert notes({"kind": "attention", "pattern": "all"}, head={"kind": "classify", "classes": 3}) == []


@pytest.mark.parametrize(
    ("spare", "unused"), [("spare", ["spare"]), ("spare_too", ["spare_too"]), ("key", ["key"]), ("used", [])]
)
def test_a_dim_that_nothing_reads(spare, unused):
    block = MLP | {"inner": "2*used + other"}
    found = notes(block, dims={spare: 3, "used": 4, "other": "used + used_by_other", "used_by_other": 5})

    assert set(found) == {
        f"dims.{name}: no value of this spec reads the dim '{name}'" for name in ["heads", "head", *unused]
    }


def test_check_prints_them(capsys, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "weft: 1\nname: s\ndims: {batch: 2, seq: 8, width: 8, inner: 8, vocab: 11, spare: 3}\n"
        "stack: [{layer: [{block: {kind: mlp}}]}]\n"
    )
    assert cli.run(["check", str(path)]) == 0
    line = f"{path}:3:57: warning[W0501]: no value of this spec reads the dim 'spare'"
    assert line in capsys.readouterr().err
    assert cli.run(["check", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["warnings"]
    assert (found["code"], found["line"], found["path"]) == ("W0501", 3, ["dims", "spare"])
    assert line in err


CELL = {"kind": "recurrence", "inputs": ["z", "u"], "state": {"h": 0}}
GRU = {"let": {"g": "sigmoid(z)", "n": "(1 - g)*h + g*u"}, "update": {"h": "n"}}


@pytest.mark.parametrize(
    ("cell", "lags"),
    [
        ({"update": {"h": "z*h + u"}, "output": "h"}, True),
        ({"update": {"h": "z*h + u"}, "output": "next(h)"}, False),
        ({"update": {"h": "z*h + u"}, "output": "tanh(z*h + u)"}, False),
        ({"update": {"h": "z*h + u"}, "output": "z + u"}, False),
        (GRU | {"output": "n"}, False),
        (GRU | {"output": "g*h"}, True),
        (GRU | {"output": "next(h) - h"}, False),
        (GRU | {"let": GRU["let"] | {"o": "g*n"}, "output": "o + h"}, False),
        ({"update": {"h": "u"}, "output": "h + z"}, True),
        ({"state": {"h": 0, "k": 0}, "update": {"h": "u + h", "k": "z*k"}, "output": "h + k"}, True),
        ({"state": {"h": 0, "k": 0}, "update": {"h": "u + h", "k": "z*k"}, "output": "next(h) + k"}, False),
    ],
)
def test_a_cell_whose_output_lags(cell, lags):
    found = notes(CELL | cell)

    assert len([w for w in found if "lags by one position" in w]) == lags
    assert all(w.startswith("stack.0.layer.0.block.output: ") for w in found if "lags" in w)


HEAD = "weft: 1\nname: s\ndims: {batch: 2, seq: 8, width: 8, inner: 8, vocab: 11}\n"


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("stack: [{layer: [{block: {kind: mlp, activation: max(x, 0)}}]}]", "max(x, 0)"),
        ("stack: [{layer: [{block: {kind: mlp, activation: max(min(x, 1), -1), gated: true}}]}]", "max(min(x, 1), -1)"),
        ("stack: [{layer: [{block: {kind: attention, pattern: fixed(4, 1), heads: 2, head: 4}}]}]", "fixed(4, 1)"),
        ("stack: [{layer: [{block: {kind: mlp, activation: where(x > 0, x, 0)}}]}]", "where(x > 0, x, 0)"),
    ],
)
def test_a_comma_that_cuts_a_formula_is_told_once_with_the_way_out(line, whole):
    with pytest.raises(SpecError) as found:
        load_text(HEAD + line)

    (problem,) = found.value.problems
    assert (problem.code, problem.hint) == ("W0001", f'write "{whole}"')
    assert problem.place.line == 4
    assert line[problem.place.col - 1 :].startswith(whole[:5])
    load_text(HEAD + line.replace(whole, f'"{whole}"'))


@pytest.mark.parametrize(
    "text", ["{a: max(x}", "{a: max(x, [1]: 2}", "{a: f(, b: {c: 1}}", "{a: (, b: 3}", "{a: (x, y): 3}"]
)
def test_a_parenthesis_that_nothing_closes_cuts_no_formula(text):
    with pytest.raises(SpecError) as found:
        load_text(HEAD + f"stack: {text}")
    assert "a comma ends a value" not in str(found.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--memory", "4G"), "write 4GB"), (("--memory", "1.5 t"), "write 1.5TB"), (("--memory", "lots"), "60GB"),
     (("--target", "h100"), "did you mean sm_90?"), (("--target", "H200"), "did you mean sm_90?"),
     (("--target", "SM90"), "did you mean sm_90?"), (("--target", "A100"), "did you mean sm_80?"),
     (("--target", "mi300x"), "did you mean gfx942?"), (("--target", "v100"), "known: cpu, sm_80")],
)  # fmt: skip
def test_amounts_and_targets_as_people_say_them(option, said, capsys):
    assert cli.run(["plan", "examples/specs/gpt2_345m.yaml", "--small", *option]) == 2
    assert said in capsys.readouterr().err
