"""Known faults of compilers: no source shows one, no configuration meets one, and both would be seen."""

import json
from pathlib import Path

import pytest

from benchmarks.specs import EVERY
from tests.campaign import SOAK
from weft import api
from weft.codegen import skeletons
from weft.codegen.skeletons.common.writer import hazards
from weft.codegen.skeletons.common.writer.hazards import HAZARDS, Hazard, broken, clear, every, offences

FOLDER = Path(__file__).parents[2] / "examples" / "specs"
SHOWN = {
    "reversed-scan": "tl.associative_scan(x, 0, add, reverse=True)",
    "specialized-warps": "for n in tl.range(0, N, warp_specialize=True):",
    "comprehension-over-constants": "parts = tuple(t for t in TILES)",
}


def test_a_source_that_shows_a_hazard_is_found():
    assert SHOWN.keys() == {h.id for h in every() if h.pattern}
    for name, line in SHOWN.items():
        assert offences(f"x = 1\n    {line}\n") == ((name, 2),)


def test_no_skeleton_shows_one():
    texts = skeletons.shipped(skeletons.families())

    assert {name: offences(text) for name, text in texts.items() if offences(text)} == {}


@pytest.mark.parametrize("name", EVERY if SOAK else ["gpt2_345m", "mistral_7b"])
def test_nothing_emitted_shows_or_meets_one(name):
    planned = api.planned(api.open_spec(FOLDER / f"{name}.yaml"), target="sm_90")
    for region in planned.kernels.regions:
        about = skeletons.families()[region.family].facts(region.graph, planned.sizes.__getitem__)
        assert offences(region.text) == ()
        assert clear(region.configs, about) == region.configs
        for target, own in region.configs.items():
            for config in own.values():
                parts = [v for v in config.values() if isinstance(v, dict)] or [config]
                assert [broken(part, target, about) for part in parts] == [()] * len(parts)


def test_a_configuration_is_kept_clear():
    narrow, config = {"tiles": 1, "narrowest": 32}, {"BM": 64, "num_warps": 4}
    found = clear({t: {"bf16": dict(config)} for t in ("sm_80", "sm_90")}, narrow)
    parts = clear({"sm_90": {"bf16": {"forward": dict(config), "dq": {"BM": 64, "num_warps": 2}}}}, narrow)
    tiles = {"tiles": 2, "narrowest": 16}

    assert [h.id for h in broken(config, "sm_90", narrow)] == ["narrow-dots-four-warps"]
    assert found == {"sm_80": {"bf16": config}, "sm_90": {"bf16": {"BM": 64, "num_warps": 8}}}
    assert parts["sm_90"]["bf16"] == {"forward": {"BM": 64, "num_warps": 8}, "dq": {"BM": 64, "num_warps": 2}}
    assert clear({"sm_100": {"f16": dict(config)}}, tiles) == {"sm_100": {"f16": {"BM": 32, "num_warps": 4}}}
    assert clear({"sm_90": {"bf16": dict(config)}}, {}) == {"sm_90": {"bf16": config}}


def test_every_remedy_keeps_its_rule():
    for hazard in every():
        if hazard.rule:
            worst = {"tiles": 2, "narrowest": 16, "scans": 1, "BM": 64, "num_warps": 8}
            assert any(not hazards._keeps(hazard.rule, {**worst, "num_warps": w}) for w in (4, 8))
            assert all(hazards._keeps(hazard.rule, {**worst, "num_warps": w, **dict(hazard.remedy)}) for w in (4, 8))


def test_emission_reads_the_table(monkeypatch):
    """A hazard that no kernel of four warps gets past changes every configuration of its target, and no other."""
    planted = Hazard("planted", "", "", "", ("sm_90",), rule="num_warps != 4", remedy=(("num_warps", 8),))
    spec = FOLDER / "gpt2_345m.yaml"
    before = json.loads(api.package(spec, small=True, target="sm_90")["configs.json"])["kernels"]
    monkeypatch.setattr(hazards, "HAZARDS", (*HAZARDS, planted))
    after = json.loads(api.package(spec, small=True, target="sm_90")["configs.json"])["kernels"]

    def warps(found, target):
        every = [c for own in found.values() for c in own[target].values()]
        return [p["num_warps"] for c in every for p in ([c] if "num_warps" in c else c.values())]

    assert 4 in warps(before, "sm_90")
    assert warps(after, "sm_90") == [8 if w == 4 else w for w in warps(before, "sm_90")]
    assert warps(after, "sm_80") == warps(before, "sm_80")
