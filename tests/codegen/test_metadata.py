"""Attention that reads metadata or static tables, as emitted: against n x n masks in plain torch, whatever the layout,
the score and the form of the mask; at the largest length, shorter, of one token; torch path, kernels, decoding."""

import random
from functools import lru_cache

import numpy as np
import pytest
import torch

from tests import campaign
from tests.codegen.attention_model import Case
from weft.codegen import onnx
from weft.codegen.build import module_of, temporary
from weft.codegen.check.decode import decoded, leak
from weft.codegen.check.verify import verify
from weft.ir.pattern.table import BigBird

PER_HEAD = (((0,), (), (0, 0, 2)), ((0, 1, 2), (1, 1), (0,)))
LAYOUTS = {
    "causal": lambda q, k, h: k <= q,
    "window(3)": lambda q, k, h: 0 <= q - k < 3,
    "causal and strided(2)": lambda q, k, h: k <= q and (q - k) % 2 == 0,
    "causal and fixed(4, 1)": lambda q, k, h: k <= q and (q // 4 == k // 4 or k % 4 == 3),
    "band(2, 1)": lambda q, k, h: -2 <= k - q <= 1,
    "block_diagonal(3)": lambda q, k, h: q // 3 == k // 3,
    "heads(causal, window(2))": lambda q, k, h: (k <= q, 0 <= q - k < 2)[h % 2],
    "on_heads(0, 1, causal)": lambda q, k, h: h == 0 and k <= q,
    "on_heads(1, 9, causal)": lambda q, k, h: h >= 1 and k <= q,
    "blocks(3, [[0], [0, 1], [2, 0]])": lambda q, k, h: k // 3 in ((0,), (0, 1), (0, 2))[q // 3],
    "blocks(3, [[0], [], [2, 0, 0]], [all, [1, 1], [0]])": lambda q, k, h: PER_HEAD[h % 2][q // 3].count(k // 3),
    "all": lambda q, k, h: True,
}
# How a layout stands among conditions, and what that makes of how often it lists a pair.
FORMS = {
    "{}": lambda n, q, k, s, v: n,
    "{} and same_segment": lambda n, q, k, s, v: n * (s[q] == s[k]),
    "valid and {}": lambda n, q, k, s, v: n * v[k],
    "{} and valid and same_segment": lambda n, q, k, s, v: n * (v[k] and s[q] == s[k]),
    "{} and not same_segment": lambda n, q, k, s, v: n * (s[q] != s[k]),
    "{} and (same_segment or q == k)": lambda n, q, k, s, v: n * (s[q] == s[k] or q == k),
    "{} and causal": lambda n, q, k, s, v: n * (k <= q),
    "{} or (same_segment and k < q)": lambda n, q, k, s, v: max(int(n), s[q] == s[k] and k < q),
    "not {} and valid": lambda n, q, k, s, v: not n and v[k],
}
SCORES = {
    "s": lambda s, q, k, h: s,
    "s*(1 + h) - (q - k)/8": lambda s, q, k, h: s * (1 + h) - (q - k) / 8,
    "3*tanh(s/3)": lambda s, q, k, h: 3 * torch.tanh(s / 3),
}
Drawing = tuple[str, str, str, int]


@lru_cache(maxsize=512)
def case(layout: str, form: str, score: str = "s", kv: int = 2) -> Case:
    """layout in form, under a score, with kv key heads."""

    def seen(q, k, h, segments, valid):
        return FORMS[form](LAYOUTS[layout](q, k, h), q, k, segments, valid)

    inner = f"({layout})" if " and " in layout else layout
    return Case({"pattern": form.format(inner), "score": score, "kv_heads": kv}, seen, SCORES[score])


def drawn(count: int) -> list[Drawing]:
    """Every layout, form, score and number of key heads as often as the others of its kind, met by chance."""
    draw = random.Random(3)
    decks = [draw.sample([*axis] * -(-count // len(axis)), count) for axis in (LAYOUTS, FORMS, SCORES, (1, 2))]
    return list(dict.fromkeys(zip(*decks)))


CASES = drawn(campaign.count(11, 300))


@pytest.mark.parametrize("drawing", CASES, ids=str)
def test_masks_are_the_predicate(drawing: Drawing):
    one = case(*drawing)
    for n in (1, 5, 8):
        given = one.inputs(n)
        assert one.error(given) <= 1e-10, n
    alone = {k: x[1:] for k, x in given.items()}
    torch.testing.assert_close(one.module(**alone).logits, one.module(**given).logits[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("drawing", CASES[:: campaign.count(4, 1)], ids=str)
def test_kernels_are_the_predicate(drawing: Drawing):
    one = case(*drawing)
    assert one.error(one.inputs(7), kernels=True) <= 1e-10


@pytest.mark.parametrize("drawing", CASES, ids=str)
def test_steps_are_the_whole_sequence(drawing: Drawing):
    """Where no later key is seen; a step is told the metadata of its own position and knows those of the keys."""
    one = case(*drawing)
    module, given = one.module.eval(), one.inputs(8, 3)
    with torch.no_grad():
        whole = dict(zip(one.program.outputs, module(**given)))
        if "cannot decode" in one.files["model.py"]:
            with pytest.raises(NotImplementedError, match="sees later positions"):
                module.state(2)
            return
        for first in (0, 3, 8):
            assert decoded(one.program, module, given, whole, first).ok
        assert leak(one.program, module, given, whole).error == 0


def test_a_row_that_sees_nothing_gives_nothing():
    one = case("causal", "valid and {}")
    given = one.inputs(6) | {"valid": torch.zeros(2, 6, dtype=torch.bool)}
    out = one.module(**given).logits
    p = dict(one.module.named_parameters())
    plain = (p["embed.tokens"][given["tokens"]] + p["layers.0.attention.output.bias"]) @ p["head.weight"]
    assert torch.equal(out, plain)
    grads = torch.autograd.grad(out.sum(), [p[f"layers.0.attention.{n}.weight"] for n in ("query", "key", "value")])
    assert not any(g.any() for g in grads)


def test_metadata_is_checked_by_name_dtype_and_shape():
    one = case("causal", "{} and valid and same_segment")
    module, given = one.module, one.inputs(6)
    narrow = module(**given | {"segments": given["segments"].int()}).logits
    assert torch.equal(narrow, module(**given).logits)
    for name, wrong, error, text in (
        ("segments", given["segments"].double(), TypeError, "segments must be torch.int64, got torch.float64"),
        ("valid", given["valid"].long(), TypeError, "valid must be torch.bool, got torch.int64"),
        ("valid", given["valid"][:, :5], ValueError, "valid: dim seq is 5, but 6 in another input"),
        ("segments", given["segments"][0], ValueError, r"segments must be \[batch seq\], got shape \[6\]"),
    ):
        with pytest.raises(error, match=text):
            module(**given | {name: wrong})
    with pytest.raises(TypeError, match="segments"):
        module.step(given["tokens"][:, 0], state=module.state(2))


TOGETHER = ("blocks(3, [[0], [0, 1], [2, 0]])", "{} and valid and same_segment", "s*(1 + h) - (q - k)/8", 1)


@pytest.mark.parametrize("kind", ["portable", "semantic"])
@pytest.mark.parametrize("drawing", [TOGETHER, ("causal", "{} and (same_segment or q == k)", "s", 2)], ids=str)
def test_onnx_files_read_metadata(drawing: Drawing, kind, tmp_path):
    one = case(*drawing)
    program = one.lowered(train=False)
    files = onnx.export(program, tmp_path)
    for n in (8, 5):
        given = one.inputs(n)
        arrays = {k: x.detach().numpy() for k, x in given.items()}
        arrays |= {k: p.detach().float().numpy() for k, p in one.module.named_parameters()}
        got = onnx.run(program, files[kind], arrays)["logits"]
        want = one.plain(given).detach().numpy()
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def test_verify_feeds_metadata_to_every_verb():
    one = case("causal", "{} and valid and same_segment")
    found = verify(one.program, lambda: module_of(temporary(one.files)))
    assert found.ok, found.text()
    assert {"decode = parallel", "no leak from later"} <= {r.check for r in found.rows}


def drawn_blocks(block: int, tokens: int) -> Case:
    """BigBird's table on the last three heads of four, causal on the first; two share a key head."""
    table = BigBird(block, 1, 3, tokens)
    rows = [table.rows(h) for h in range(4)]

    def seen(q, k, h, segments, valid):
        return k <= q if h == 0 else rows[h][q // block] is None or k // block in rows[h][q // block]

    text = f"on_heads(0, 1, causal) or on_heads(1, 4, bigbird({block}, 1, 3))"
    return Case({"pattern": text, "kv_heads": 2}, seen, dims={"heads": 4, "seq": tokens})


def test_a_table_by_head_on_some_heads():
    one = drawn_blocks(1, 8)
    assert one.error(one.inputs(8)) <= 1e-10
    wide = drawn_blocks(16, 80)
    assert wide.error(wide.inputs(20), kernels=True) <= 1e-10


@pytest.mark.parametrize(
    ("text", "near", "seen"),
    [
        ("window(3) and same_segment", "Near(2, 0)", lambda q, k, s, v: 0 <= q - k < 3 and s[q] == s[k]),
        ("band(1, 2) and valid", "Near(1, 2)", lambda q, k, s, v: -1 <= k - q <= 2 and v[k]),
        ("not causal and valid", "Near(-1, None)", lambda q, k, s, v: k > q and v[k]),
        ("same_segment or window(2)", "Tiles(keep)", lambda q, k, s, v: s[q] == s[k] or 0 <= q - k < 2),
    ],
)
def test_tiles_keep_to_the_keys_a_pattern_can_reach(text, near, seen):
    dims = {"batch": 1, "heads": 1, "seq": 300}
    one = Case({"pattern": text}, lambda q, k, h, s, v: seen(q, k, s, v), dims=dims)
    assert near in one.files["blocks/layer.py"]
    assert one.error(one.inputs(300, batch=1)) <= 1e-10
