"""The strict loader: what it reads, what it refuses, and that every value knows its place."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.errors import SpecError, UsageError
from weft.frontends.emit_yaml import emit
from weft.frontends.extends import read_document
from weft.frontends.yaml_loader import MAX_BYTES, decode, load


def refused(text: str) -> list[tuple[str, int, int]]:
    with pytest.raises(SpecError) as found:
        load(text, "x.yaml")
    return [(p.code, p.place.line, p.place.col) for p in found.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("True", "True"), ("NULL", "NULL"),
        ("0", 0), ("-3", -3), ("+7", 7), ("012", "012"), ("1_000", "1_000"), ("0x10", "0x10"), ("1:30", "1:30"),
        ("1e-3", 1e-3), ("1E5", 1e5), ("2.5", 2.5), (".5", 0.5), ("3.", 3.0), ("1.10", 1.1), ("-1.5e+2", -150.0),
        (".inf", ".inf"), (".nan", ".nan"), ("inf", "inf"), ("2001-01-01", "2001-01-01"), ("=", "="), ("<<", "<<"),
        ("'1'", "1"), ('"true"', "true"), ('"a\\tb"', "a\tb"), ("4*width", "4*width"), ("a b  c", "a b  c"),
    ],
)  # fmt: skip
def test_scalars_mean_what_was_typed(text, value):
    found = load(f"k: {text}\n", "x").data["k"]

    assert found == value
    assert type(found) is type(value)


def test_every_value_and_key_has_its_place():
    document = load("weft: 1\nblocks:\n  é: {kind: mlp,\n      inner: 4*w}\nlist:\n- a\n-   b\n", "s.yaml")

    assert document.data == {"weft": 1, "blocks": {"é": {"kind": "mlp", "inner": "4*w"}}, "list": ["a", "b"]}
    inner = document.places["blocks", "é", "inner"]
    assert (inner.file, inner.line, inner.col, inner.width, inner.text) == ("s.yaml", 4, 14, 3, "      inner: 4*w}")
    assert (document.keys["blocks", "é", "inner"].line, document.keys["blocks", "é", "inner"].col) == (4, 7)
    assert (document.places["list", 1].line, document.places["list", 1].col) == (7, 5)
    assert document.place(("blocks", "é", "missing", 3)) == document.keys["blocks", "é"]


def test_json_is_read_too_even_when_indented_with_tabs():
    data = {"weft": 1, "x": [1, 2.5, True, None, "a/b"], "y": {"z": 'q"\\'}}
    document = load(json.dumps(data, indent="\t"), "x.json")

    assert document.data == data
    assert (document.places["x", 4].line, document.places["x", 4].col) == (8, 3)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("a: 1\nb: 2\na: 3\nb: 4\n", [("W0007", 3, 1), ("W0007", 4, 1)]),
        ("a: {x: 1, x: 2}\n", [("W0007", 1, 11)]),
        ("a: &one 1\nb: *one\n", [("W0008", 1, 4), ("W0008", 2, 4)]),
        ("a: !!int 3\nb: !env HOME\nc: !!python/object/apply:os.system [id]\n",
         [("W0009", 1, 4), ("W0009", 2, 4), ("W0009", 3, 4)]),
        ("a: [1, 2\nb: 3\n", [("W0001", 2, 2)]),
        ("a:\n\t- 1\n", [("W0001", 2, 1)]),
        ("a: b: c\n", [("W0001", 1, 5)]),
        ("a: @b\n", [("W0001", 1, 4)]),
        ("", [("W0005", 1, 1)]),
        ("# nothing\n", [("W0005", 1, 1)]),
        ("a: 1\n---\nb: 2\n", [("W0006", 2, 1)]),
        ("? [a]\n: 1\n", [("W0010", 1, 3)]),
        ("a: 'x\x1b[31m'\n", [("W0004", 1, 6)]),
        ('a: "\\e[31m"\n', [("W0004", 1, 4)]),
        ("a: x\u202ey\nb: \u2028\n", [("W0004", 1, 5), ("W0004", 2, 4)]),
        ("a: 1e999\nb: 1234567890123456789\n", [("W0011", 1, 4), ("W0011", 2, 4)]),
        ("a: " + "9" * 5000 + "\n", [("W0011", 1, 4)]),
        ("[" * 40 + "]" * 40, [("W0002", 1, 34)]),
        ("[" * 100_000, [("W0002", 1, 34)]),
        ("- x\n" * 10_001, [("W0002", 10_000, 3)]),
    ],
)  # fmt: skip
def test_refuses_with_the_place(text, places):
    assert refused(text) == places


def test_a_repeated_key_names_both_lines():
    with pytest.raises(SpecError, match="first on line 1, again on line 3"):
        load("a: 1\nb: 2\na: 3\n", "x")


def test_large_and_binary_files_are_refused_by_place():
    with pytest.raises(SpecError) as large:
        decode(b"a" * (MAX_BYTES + 1), "x")
    with pytest.raises(SpecError) as binary:
        decode("weft: 1\nname: é".encode("latin-1"), "x")

    assert large.value.problems[0].code == "W0002"
    assert (binary.value.problems[0].code, binary.value.problems[0].place.line) == ("W0003", 2)
    assert binary.value.problems[0].place.col == 7
    assert decode(b"\xef\xbb\xbfweft: 1", "x") == "weft: 1"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**17), 10**17), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=12),
    st.sampled_from(["yes", "1e-3", "012", "null", "a: b", "- x", "#", "q - k < 8", "{", "x, y", "'", '"', "\\"]),
)  # fmt: skip
KEYS = st.text("abcxyz_01 é:#", min_size=1, max_size=8)
TREES = st.recursive(SCALARS, lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=4), max_leaves=20)


@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=5))
def test_what_the_emitter_writes_the_loader_reads(data):
    assert load(emit(data), "x").data == data


@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused_with_a_place(raw):
    problems = ()
    try:
        load(decode(raw, "x"), "x")
    except SpecError as error:
        problems = error.problems

    assert all(p.place is not None and p.code.startswith("W00") for p in problems)


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_extends_merges_maps_and_keeps_the_file_of_each_value(tmp_path):
    write(
        tmp_path,
        top="extends: parts/base.yaml\ndims: {b: 3, c: 4}\nstack: [x]\n",
        parts__base="extends: root.yaml\nweft: 1\ndims:\n  b: 2\nstack: [y, z]\n",
        parts__root="dims:\n  a: 1\nname: r\n",
    )
    document = read_document(str(tmp_path / "top.yaml"))

    assert document.data == {"dims": {"a": 1, "b": 3, "c": 4}, "name": "r", "weft": 1, "stack": ["x"]}
    where = {key: os.path.basename(document.place(("dims", key)).file) for key in "abc"}
    assert where == {"a": "root.yaml", "b": "top.yaml", "c": "top.yaml"}
    assert os.path.basename(document.place(("stack", 0)).file) == "top.yaml"
    assert ("stack", 1) not in document.places


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("../other.yaml", "outside"), ("/etc/passwd", "relative path"), ("a/../../x.yaml", "outside"),
        ("link.yaml", "outside"), ("top.yaml", "extends itself"), ("loop.yaml", "leads back"), ("bas.yaml", "no file"),
        ("secret.txt", "relative path"), ("[a, b]", "one file"), ("''", "one file"), ("'a\\b.yaml'", "relative path"),
    ],
)  # fmt: skip
def test_extends_stays_in_the_specs_folder(tmp_path, base, words):
    folder = tmp_path / "in"
    write(folder, top=f"extends: {base}\n", base="name: b\n", loop="extends: top.yaml\n")
    write(tmp_path, other="name: o\n")
    (folder / "link.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(SpecError, match=words) as found:
        read_document(str(folder / "top.yaml"))

    place = found.value.problems[0].place
    assert os.path.basename(place.file) == ("loop.yaml" if base == "loop.yaml" else "top.yaml")
    assert place.col == 10


def test_extends_suggests_the_file_that_was_meant(tmp_path):
    write(tmp_path, top="extends: bass.yaml\n", base="name: b\n")
    with pytest.raises(SpecError) as found:
        read_document(str(tmp_path / "top.yaml"))

    assert found.value.problems[0].hint == "did you mean 'base.yaml'?"


def test_a_chain_of_bases_has_an_end(tmp_path):
    write(tmp_path, **{f"s{i}": f"extends: s{i + 1}.yaml\n" for i in range(20)})
    with pytest.raises(SpecError, match="more than 8 files"):
        read_document(str(tmp_path / "s0.yaml"))


def test_files_that_cannot_be_read_are_a_usage_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError):
            read_document(str(path))
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        read_document("/dev/zero")
