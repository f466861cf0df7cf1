"""docs/spec.md is what the schema says."""

from pathlib import Path

from weft.frontends import document, schema


def test_the_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "spec.md"

    assert page.read_text(encoding="utf-8") == document.page(), "run `make docs`"


def test_every_part_and_every_key_is_on_the_page():
    page = document.page()
    parts, todo = [], [schema.SpecPart]
    for part in todo:
        todo += part.__subclasses__()
        parts += [part] if part.model_fields else []

    assert len(parts) >= 20
    for part in parts:
        section = page.split(f"\n### {part.called or part.__name__}\n")[1].split("\n### ")[0]
        for key, field in part.model_fields.items():
            assert key == "module" or f"| `{key}` |" in section, (part.__name__, key)
            assert field.description or key == "kind", (part.__name__, key)
