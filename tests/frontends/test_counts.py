"""COUNTS.md against the compiled models, term by term, and against Hugging Face's where it has the same model."""

import re
from pathlib import Path
from typing import Any

import pytest

from weft.frontends import expressions
from weft.frontends.load import load_spec
from weft.frontends.lower.program import lower

SPECS = Path("examples/specs")
TEXT = (SPECS / "COUNTS.md").read_text()
NAMES = sorted(p.stem for p in SPECS.glob("*.yaml"))


def number(text: str) -> int:
    return int(re.sub(r"[^0-9]", "", text))


def terms(name: str) -> list[tuple[str, int]]:
    """(formula, count) of every term in a spec's section."""
    section = TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]
    return [(formula, number(n)) for formula, n in re.findall(r"^\|[^|]*\| `([^`]+)` \| ([0-9,]+) \|$", section, re.M)]


def test_every_spec_is_counted() -> None:
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.M) == re.findall(r"^## (\w+)$", TEXT, re.M)
    assert sorted(re.findall(r"^## (\w+)$", TEXT, re.M)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_terms_add_up(name: str) -> None:
    loaded = load_spec(SPECS / f"{name}.yaml")
    found = terms(name)
    for formula, count in found:
        assert expressions.evaluate(expressions.parse(formula), loaded.dims.values, formula) == count, formula
    published, unit, total = re.findall(rf"^\| `{name}` \| ([0-9.]+) ([MB]) \| ([0-9,]+) \|$", TEXT, re.M)[0]
    assert sum(n for _, n in found) == number(total) == lower(loaded.model, loaded.dims).parameter_count()
    digits = len(published.partition(".")[2])
    assert round(number(total) / {"M": 1e6, "B": 1e9}[unit], digits) == float(published)


def test_small_counts_are_small() -> None:
    for name in NAMES:
        loaded = load_spec(SPECS / f"{name}.yaml", small=True)
        assert lower(loaded.model, loaded.dims).parameter_count() < 100_000


def _oracles() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    longformer = {"vocab_size": 50265, "max_position_embeddings": 4098, "type_vocab_size": 1, "attention_window": 512}
    return {
        "gpt2_345m": (transformers.GPT2LMHeadModel, transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16), 0),
        "bert_base": (transformers.BertForPreTraining, transformers.BertConfig(), 0),
        "bigbird_base": (
            transformers.BigBirdForMaskedLM, transformers.BigBirdConfig(vocab_size=50358), 768 * 768 + 768,
        ),
        "longformer_base": (transformers.LongformerForMaskedLM, transformers.LongformerConfig(**longformer), 0),
        "mistral_7b": (transformers.MistralForCausalLM, transformers.MistralConfig(), 0),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2_345m", "bert_base", "bigbird_base", "longformer_base", "mistral_7b"])
def test_counts_of_the_published_models(name: str) -> None:
    """The same number of parameters as the published configuration, which keeps `unused` more that nothing reads."""
    torch = pytest.importorskip("torch")
    model, config, unused = _oracles()[name]
    loaded = load_spec(SPECS / f"{name}.yaml")
    with torch.device("meta"):
        theirs = sum(p.numel() for p in model(config).parameters())
    assert lower(loaded.model, loaded.dims).parameter_count() == theirs - unused
