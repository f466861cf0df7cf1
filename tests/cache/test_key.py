"""The key: every hard field counts, names and comments of the spec do not."""

from dataclasses import fields, replace

import pytest

from tests.cache.examples import KEY, SOFT
from weft import api
from weft.cache.kernel import canonical_text, kernel_hash
from weft.cache.key import HARD, Device, Key, KeyInvalid, Soft, release
from weft.ir.builder import Builder
from weft.ir.types import Type


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return (*value, ("batch", 2))
    return f"{value}x"


def mutants() -> dict[str, Key]:
    own = {f.name: replace(KEY, **{f.name: changed(getattr(KEY, f.name))}) for f in fields(Key) if f.name != "device"}
    device = {
        f.name: KEY.on(replace(KEY.device, **{f.name: changed(getattr(KEY.device, f.name))})) for f in fields(Device)
    }
    return own | device


@pytest.mark.parametrize("field", HARD)
def test_any_hard_field_makes_another_key(field):
    other = mutants()[field]

    assert other.id != KEY.id
    assert [name for name, _, _ in KEY.differs(other)] == [field]


def test_every_hard_field_is_named_and_every_mutant_is_its_own():
    assert mutants().keys() == set(HARD)
    assert len({key.id for key in mutants().values()} | {KEY.id}) == len(HARD) + 1


def test_a_key_comes_back_from_its_clear_text():
    assert Key.parse(KEY.flat()) == KEY
    assert Soft.parse(SOFT.flat()) == SOFT
    assert KEY.differs(KEY) == ()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("triton"),
        lambda d: d.update(extra=1),
        lambda d: d.update(sms=True),
        lambda d: d.update(sms=-1),
        lambda d: d.update(gpu="a\x1b[2Jb"),
        lambda d: d.update(gpu=7),
        lambda d: d.update(bucket=[["seq", 1]]),
        lambda d: d.update(bucket={"seq": 1.5}),
        lambda d: d.update(fp_fusion=1),
        lambda d: d.update(skeleton="x" * 1000),
    ],
)
def test_data_that_is_no_key_is_refused(damage):
    data = KEY.flat()
    damage(data)

    with pytest.raises(KeyInvalid):
        Key.parse(data)


def test_the_order_of_a_bucket_does_not_count():
    assert replace(KEY, bucket=(("seq", 4096), ("head", 64))).id == KEY.id


def test_releases_are_compared_as_numbers():
    assert release("3.10.0") > release("3.9.1+git123") > release("3.9.0") > release("3.6")
    assert release("") == release("main") == ()


def region(prefix: str, src: str, scale: str = "2"):
    g = Builder()
    x = g.input(f"{prefix}x", Type("f32", ("batch", "width")))
    w = g.input(f"{prefix}w", Type("f32", ("width", "inner")))
    with g.at(src):
        h = g.einsum(x, w, to=("batch", "inner"))
        y = g.map(f"{scale} * a + 1", to=("batch", "inner"), a=h, names=(f"{prefix}y",))
    return g.graph(y)


def test_names_and_places_in_the_spec_do_not_change_the_kernel():
    assert canonical_text(region("", "spec.yaml:3")) == canonical_text(region("other_", "else.yaml:70"))
    assert kernel_hash(region("", "a:1"), {"width": 64}) == kernel_hash(region("b_", "c:2"), {"width": 64})


def test_what_is_computed_changes_the_kernel():
    base = kernel_hash(region("", "a:1"), {"width": 64})

    assert base != kernel_hash(region("", "a:1", "3"), {"width": 64})
    assert base != kernel_hash(region("", "a:1"), {"width": 128})
    assert base != kernel_hash(region("", "a:1"), {"width": 64}, hazards=["mma_v3"])


SPEC = """weft: 1
name: {model}
dims: {{batch: 2, seq: 16, width: 8, heads: 2, head: 4, inner: 16, vocab: 11}}
blocks:
  {block}: {{kind: attention, pattern: causal}}  {comment}
stack:
  - repeat: 2
    layer: [{block}]
"""


def test_renaming_a_block_or_a_comment_of_a_spec_leaves_its_kernels_alone(tmp_path):
    hashes = []
    for model, block, comment in (("tiny", "mix", ""), ("other", "attention_of_mine", "# the same, said otherwise")):
        path = tmp_path / f"{model}.yaml"
        path.write_text(SPEC.format(model=model, block=block, comment=comment))
        hashes.append(kernel_hash(api.program(api.open_spec(path)).graph))

    assert hashes[0] == hashes[1]
