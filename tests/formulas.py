"""Every form of a formula that docs/spec.md gives, in one name V: what is documented is accepted, and means that."""

import re
from pathlib import Path

_PAGE = (Path(__file__).parents[1] / "docs" / "spec.md").read_text(encoding="utf-8")
_TEXT, _NAMES = re.findall(r"\n## Formulas\n\n(.*?)\n\n(.*?)\n\n", _PAGE, re.DOTALL)[0]
_TWO = {"logaddexp", "mod", "max", "min"}


def _call(name: str) -> str:
    return f"{name}(V > 2, V, 2)" if name == "where" else f"{name}(V, 2)" if name in _TWO else f"{name}(V)"


def documented() -> tuple[str, ...]:
    """One formula for each operator, comparison, connective, form, constant and function of the page."""
    said = re.findall(r"`(.+?)`", _TEXT.replace("\n", " "))
    operators = next(s for s in said if s.startswith("+ -")).split()
    assert {"and", "or", "not", "a if condition else b", "pi"} <= set(said), "the page has another form: test it here"
    compared = ("<", "<=", ">", ">=", "==", "!=")
    return (
        *(f"V {o} 2" for o in operators),
        *(f"where(V {c} 2, 1, V)" for c in compared),
        *("where(V > 1 and V < 2, V, 1)", "where(V < 1 or V > 2, V, 1)", "where(not V > 2, V, 1)"),
        *("where(1 < V <= 2, V, 3)", "V if V > 2 else 2", "1 if V > 2 else V if V < 1 else 2", "(V + 1) * 2"),
        *("3", "0.5 * V", "1e-3 * V", "pi * V", "-V", "+V"),
        *map(_call, re.findall(r"`(\w+)`", _NAMES)),
    )


def sums(name: str, size: int) -> list[str]:
    """The formulas in this name, `size` of them added up in one."""
    every = ["(" + f.replace("V", name) + ")" for f in documented()]
    return [" + ".join(every[k : k + size]) for k in range(0, len(every), size)]
