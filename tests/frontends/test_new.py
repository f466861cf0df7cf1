"""`weft new`: every kind is a commented spec that checks, full size and small, and round-trips."""

from pathlib import Path

import pytest

from weft import api, cli
from weft.frontends import new
from weft.frontends.load import load_text


@pytest.mark.parametrize("kind", new.KINDS)
def test_every_kind_checks(kind, tmp_path):
    path = tmp_path / "my.yaml"
    assert cli.run(["new", kind, "-o", str(path)]) == 0

    assert path.read_text().startswith("# yaml-language-server: $schema=")
    assert path.read_text().count("#") >= 3
    assert len(path.read_text().splitlines()) <= 50
    full = api.check(path)
    assert 10**6 < full["parameters"] < 10**9
    for train in (True, False):
        assert api.check(path, small=True, train=train)["parameters"] < 10**5


@pytest.mark.parametrize("kind", new.KINDS)
def test_every_kind_round_trips_through_the_builder(kind):
    model = load_text(new.text(kind)).model

    assert load_text(model.to_yaml()).model == model


def test_templates_and_kinds_are_the_same_set():
    folder = Path(new.__file__).parent / "templates"

    assert {path.stem for path in folder.glob("*.yaml")} == set(new.KINDS)


def test_a_file_is_not_overwritten_unless_asked(tmp_path, capsys):
    path = tmp_path / "my.yaml"
    path.write_text("mine")

    assert cli.run(["new", "gpt", "-o", str(path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert cli.run(["new", "gpt", "-o", str(path), "--force"]) == 0
    assert path.read_text() == new.text("gpt")


def test_without_a_kind_the_kinds_are_listed(capsys):
    assert cli.run(["new"]) == 0
    out = capsys.readouterr().out
    assert all(f"{kind:12} {line}" in out for kind, line in new.KINDS.items())
