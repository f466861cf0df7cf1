"""A pattern as a value: which keys a query sees, by head, as text that reads back equal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from weft.errors import FormulaError
from weft.ir.pattern.expression import reads_of
from weft.ir.pattern.formula import BatchCondition, Formula, InTable, at_head, leaves, per_head
from weft.ir.pattern.named import METADATA
from weft.ir.pattern.syntax import read


@dataclass(frozen=True)
class Pattern:
    """Which keys k a query q sees on head h. Two patterns are equal when their canonical texts are.

    text: canonical, every dim a number. source: as the author wrote it, for people.
    """

    text: str
    formula: Formula = field(compare=False, repr=False)
    source: str = field(default="", compare=False, repr=False)

    @staticmethod
    def parse(text: str, names: Mapping[str, int] | None = None) -> "Pattern":
        """`text` in the grammar of weft.ir.pattern.syntax; `names`: the dims it may use. Raises FormulaError."""
        return _parse(text, tuple(sorted((names or {}).items())))

    def __str__(self) -> str:
        return self.text

    def __and__(self, other: "Pattern") -> "Pattern":
        return Pattern.parse(f"({self.text}) and ({other.text})")

    def __or__(self, other: "Pattern") -> "Pattern":
        return Pattern.parse(f"({self.text}) or ({other.text})")

    def __invert__(self) -> "Pattern":
        return Pattern.parse(f"not ({self.text})")

    @property
    def multiset(self) -> bool:
        """May a key count more than once? Then weights are multiplicity * exp(score), normalised."""
        listed = (leaf for leaf in leaves(self.formula) if isinstance(leaf, InTable))
        return any(leaf.table.multiset and not leaf.negated for leaf in listed)

    @property
    def per_head(self) -> bool:
        return per_head(self.formula)

    @property
    def metadata(self) -> tuple[str, ...]:
        """The metadata vectors it reads, of "segments" and "valid", in that order."""
        used = {leaf.name for leaf in leaves(self.formula) if isinstance(leaf, BatchCondition)}
        return tuple(vector for name, vector in METADATA.items() if name in used)

    @property
    def needs_length(self) -> bool:
        """Does it depend on the length of the sequence? `at(n)` fixes that."""
        return any(leaf.table.needs_length for leaf in leaves(self.formula) if isinstance(leaf, InTable))

    @property
    def reads_queries(self) -> bool:
        """Does it depend on where a query stands, metadata apart?"""
        found = (leaf for leaf in leaves(self.formula) if not isinstance(leaf, BatchCondition))
        return any(isinstance(leaf, InTable) or reads_of(leaf.x)[0] for leaf in found)

    def at(self, n: int) -> "Pattern":
        """The pattern for n tokens; itself unless it needs a length. FormulaError: a static table has too few rows."""
        for leaf in leaves(self.formula):
            if isinstance(leaf, InTable):
                leaf.table.at(n)
        return Pattern.parse(self.text, {"seq": n}) if self.needs_length else self

    def groups(self, heads: int = 1) -> tuple[tuple[int, int, Formula], ...]:
        """(first head, end, formula): heads next to each other that share a formula, together."""
        if not self.per_head:
            return ((0, heads, self.formula),)
        out: list[tuple[int, int, Formula]] = []
        for h in range(heads):
            f = at_head(self.formula, h)
            if out and out[-1][2] == f:
                out[-1] = (out[-1][0], h + 1, f)
            else:
                out.append((h, h + 1, f))
        return tuple(out)

    def only(self) -> Formula:
        """The formula of a pattern that is the same on every head."""
        if self.per_head:
            raise FormulaError("this pattern differs by head: say which head", self.text)
        return self.formula


@lru_cache(maxsize=1024)
def _parse(text: str, names: tuple[tuple[str, int], ...]) -> Pattern:
    formula, canonical = read(text, dict(names))
    return Pattern(canonical, formula, text)
