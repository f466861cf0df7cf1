import random

import pytest

from tests.campaign import count
from tests.ir.pattern.oracle import predicate
from weft.errors import FormulaError
from weft.ir.pattern import NAMED, Pattern


def test_text_reads_back_equal_over_generated_patterns():
    r = random.Random(1)
    for _ in range(count(200, 5000)):
        pattern = Pattern.parse(predicate(r, r.choice([1, 2, 3])))

        again = Pattern.parse(str(pattern))

        assert again == pattern
        assert again.formula == pattern.formula


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("causal()", "causal"),
        ("causal and (window( 2*W ) and causal)", "causal and window(16) and causal"),
        ("0<=q-k<W*3", "0 <= q - k < 24"),
        ("not (causal or false)", "not (causal or false)"),
        ("-q*2 < (k-(q-1))%4", "-q * 2 < (k - (q - 1)) % 4"),
        ("(q//W)*W == 2*k - -3", "q // 8 * 8 == 2 * k - -3"),
        ("heads(window(4),strided(W)) and causal", "heads(window(4), strided(8)) and causal"),
        ("blocks(4,[all,[1,0,1]])", "blocks(4, [[0, 1, 1]])".replace("[[", "[all, [")),
        ("bigbird(4,2,7)", "bigbird(4, 2, 7)"),
        ("\n causal\n and valid ", "causal and valid"),
    ],
)
def test_canonical_text(text, canonical):
    pattern = Pattern.parse(text, {"W": 8})

    assert str(pattern) == canonical
    assert pattern.source == text
    assert Pattern.parse(canonical) == pattern


def test_named_patterns_with_the_length_of_the_sequence():
    assert str(Pattern.parse("bigbird(4, 2, 7)", {"seq": 64})) == "bigbird(4, 2, 7, 64)"
    assert Pattern.parse("bigbird(4, 2, 7)").needs_length
    assert Pattern.parse("bigbird(4, 2, 7)").at(64) == Pattern.parse("bigbird(4, 2, 7, 64)")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("causal and causl", 11, "did you mean 'causal'"),
        ("q - k", 0, "a number where a condition is needed; compare it"),
        ("k <= q and q*k < 3", 11, "multiplies two indices; one side is a number or a dim"),
        ("foo(3)", 0, "unknown pattern 'foo'"),
        ("windw(3)", 0, "did you mean 'window'"),
        ("window()", 0, "window takes 1 values, not 0; write window(width)"),
        ("window", 0, "window needs values; write window(width)"),
        ("window(q)", 7, "'q' is not a constant"),
        ("1.5 < q", 0, "not a whole number"),
        ("q/2 < k", 0, "write // to round down"),
        ("a.b < q", 0, "not in the grammar"),
        ("q < k <", 7, "cannot read it"),
        ("(q", 0, "never closed"),
        ("lambda: 3", 0, "not in the grammar"),
        ("q == 'a'", 5, "may not stand in a pattern"),
        ("strided(0)", 0, "step is 0, not positive"),
        ("q % 0 == 1", 0, "does not divide by a positive number"),
        ("k < q % seq", 8, "unknown name 'seq'"),
        ("0 < q and window(widht)", 17, "unknown name 'widht'; did you mean 'width'"),
        ("blocks(4, [[7]])", 0, "key blocks 0 to 0, not 7"),
        ("blocks(4, [[0, -1]])", 15, "negative"),
        ("bigbird(64)", 0, "write bigbird(64, 3, 0)"),
        ("q if k else 1 < 2", 0, "not in the grammar"),
        ("99999999999999999 < q", 0, "above 2**40"),
        ("True", 0, "write 'true'"),
        ("q is k", 0, "compare with < <= > >= == !="),
        ("(" * 300 + "q", 200, "nested"),
        ("q < 1 and " * 5000 + "q < 1", 0, "more than 20000 characters"),
        ("- " * 1500 + "q < 1", 0, "nested deeper than 60"),
        ("", 0, "an empty pattern"),
        ("causal # and all", 7, "may not stand"),
        ("(q := 3) < 4", 1, "not in the grammar"),
        ("[k for k in q] == 1", 0, "not in the grammar"),
        ("heads(causal)", 0, "two patterns or more"),
        ("__import__(1)", 0, "unknown pattern '__import__'"),
    ],
)
def test_errors_have_a_place_and_a_way_out(text, column, message):
    with pytest.raises(FormulaError) as error:
        Pattern.parse(text, {"width": 8})

    assert error.value.column == column + 1
    assert message in str(error.value)


def test_every_named_pattern_is_written_in_the_grammar():
    for named in NAMED:
        args = f"({', '.join(['4'] * len(named.params))})" if named.params else ""

        assert str(Pattern.parse(named.name + args)) == named.name + args


def test_operators_join_patterns():
    causal, window = Pattern.parse("causal"), Pattern.parse("window(4) or cols(2)")

    assert str(causal & window) == "causal and (window(4) or cols(2))"
    assert str(~window | causal) == "not (window(4) or cols(2)) or causal"
