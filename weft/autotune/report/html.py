"""The report as one HTML file: no script, no network, every value escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from weft.autotune.report.progress import micros
from weft.autotune.report.tables import headline, spelled

_WIDTH, _HEIGHT, _EDGE = 640, 220, 44

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>weft tune: {{ title }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem } h3 { font-size: 1rem }
table { border-collapse: collapse; font-size: .9rem } th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #eee; vertical-align: top }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums } code { font-size: .85rem } .win { background: #e8f4ea } svg text { font-size: 11px; fill: #444 }
.bar { background: #4a7fb5; height: .7rem; display: inline-block }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #16181b } th, td { border-color: #333 } h2 { border-color: #444 } .win { background: #1f3a25 } svg text { fill: #aaa } }
</style></head><body>
<h1>weft tune: {{ title }}</h1>
{% for k in kernels %}
<h2>{{ k.kernel }}</h2>
{% for line in k.head %}<p>{{ line }}</p>{% endfor %}
{% if k.timed %}<h3>Convergence</h3>
{% if k.plot %}<svg viewBox="0 0 {{ width }} {{ height }}" width="100%" role="img" aria-label="best time after each trial">
<path d="{{ k.plot.path }}" fill="none" stroke="#4a7fb5" stroke-width="2"/>
{% for d in k.plot.dots %}<circle cx="{{ d[0] }}" cy="{{ d[1] }}" r="2" fill="#999"/>{% endfor %}
{% if k.plot.roof is not none %}<line x1="{{ edge }}" x2="{{ width }}" y1="{{ k.plot.roof }}" y2="{{ k.plot.roof }}" stroke="#b55" stroke-dasharray="4"/>{% endif %}
{% for t in k.plot.ticks %}<text x="0" y="{{ t[1] }}">{{ t[0] }}</text>{% endfor %}
<text x="{{ edge }}" y="{{ height - 4 }}">trial 1</text><text x="{{ width - 60 }}" y="{{ height - 4 }}">trial {{ k.trials }}</text>
</svg>{% else %}<p>Nothing was timed.</p>{% endif %}
<h3>The fastest</h3>
<table><tr><th></th><th>configuration</th><th>time</th><th>spread</th><th>behind</th></tr>
{% for r in k.top %}<tr{% if r.winner %} class="win"{% endif %}><td>{{ "winner" if r.winner else "incumbent" if r.incumbent else "" }}</td><td><code>{{ r.spelled }}</code></td>
<td class="n">{{ r.time }}</td><td class="n">{{ "" if r.spread is none else "%.1f %%" | format(100 * r.spread) }}</td><td class="n">{{ "" if r.behind is none else "%.2f %%" | format(100 * r.behind) }}</td></tr>{% endfor %}</table>{% endif %}
<h3>What became of the configurations</h3>
<table><tr><th>stage</th><th>why</th><th>count</th><th></th></tr>
{% for r in k.funnel %}<tr><td>{{ r.stage }}</td><td>{{ r.reason }}</td><td class="n">{{ r.count }}</td><td><span class="bar" style="width: {{ r.bar }}rem"></span></td></tr>{% endfor %}</table>
{% if k.importance %}<h3>What decides</h3>
<table>{% for name, share in k.importance.items() %}<tr><td>{{ name }}</td><td class="n">{{ "%.0f %%" | format(100 * share) }}</td><td><span class="bar" style="width: {{ (15 * share) | round(2) }}rem"></span></td></tr>{% endfor %}</table>{% endif %}
{% if k.faults %}<h3>Faults</h3>
<table><tr><th>trial</th><th>status</th><th>configuration</th><th>why</th></tr>
{% for f in k.faults %}<tr><td class="n">{{ f.trial }}</td><td>{{ f.status }}</td><td><code>{{ f.spelled }}</code></td><td>{{ f.reason }}</td></tr>{% endfor %}</table>{% endif %}
{% endfor %}
</body></html>
"""  # noqa: E501


def page(kernels: Sequence[dict[str, Any]], title: str) -> str:
    """The HTML of what `report.data` gave for each kernel."""
    return _page([_shown(k) for k in kernels], title)


def prepared_page(found: dict[str, Any], title: str) -> str:
    """The HTML of what `Prepared.data` gave: what each gate refused of each kernel; nothing was timed."""
    none = {"timed": False, "plot": None, "top": (), "importance": {}, "faults": ()}
    late = "not begun: the budget was used up"
    kernels = [{"kernel": n, "head": [k["note"]], "funnel": _barred(_gates(k))} for n, k in found["kernels"].items()]
    kernels += [{"kernel": name, "head": [late], "funnel": ()} for name in found["unbegun"]]
    return _page([none | k for k in kernels], title)


def _page(kernels: Sequence[dict[str, Any]], title: str) -> str:
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_PAGE)
    return template.render(title=title, kernels=kernels, width=_WIDTH, height=_HEIGHT, edge=_EDGE)


def _gates(kernel: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"stage": gate, "reason": reason, "count": n}
        for gate, stage in kernel["gates"].items()
        for reason, n in stage["reasons"].items()
    ]
    return [*rows, {"stage": "came through", "reason": "", "count": kernel["survivors"]}]


def _barred(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a funnel, each with the length of its bar in rem."""
    most = max((r["count"] for r in rows), default=1) or 1
    return [r | {"bar": round(15 * r["count"] / most, 2)} for r in rows]


def _shown(found: dict[str, Any]) -> dict[str, Any]:
    return found | {
        "timed": True,
        "head": headline(found).splitlines(),
        "plot": plot(found),
        "top": [r | {"spelled": spelled(r["config"]), "time": micros(r["us"])} for r in found["top"]],
        "funnel": _barred(found["funnel"]),
        "faults": [f | {"spelled": spelled(f["config"])} for f in found["faults"]],
    }


def plot(found: dict[str, Any]) -> dict[str, Any] | None:
    """The best time so far as a path, in logarithms; None without a time."""
    curve = [float(us) for us in found["curve_us"] if us]
    if not curve:
        return None
    share = found["of_roofline"]
    roof = found["winner_us"] * share if share else None
    low, high = min([*curve, float(roof)] if roof else curve), max(curve)
    first = len(found["curve_us"]) - len(curve)

    def x(trial: int) -> float:
        return round(_EDGE + (_WIDTH - _EDGE - 8) * trial / max(1, len(found["curve_us"]) - 1), 1)

    def y(us: float) -> float:
        height = math.log(us / low) / math.log(high / low) if high > low else 0.0
        return round(_HEIGHT - 24 - (_HEIGHT - 40) * height, 1)

    points = [(x(first + i), y(us)) for i, us in enumerate(curve)]
    path = f"M{points[0][0]} {points[0][1]}" + "".join(f"H{px}V{py}" for px, py in points[1:])
    steps = [p for p, us, before in zip(points[1:], curve[1:], curve) if us < before]
    ticks = [(micros(us), y(us)) for us in sorted({low, high})]
    return {"path": path, "dots": [points[0], *steps], "roof": y(roof) if roof else None, "ticks": ticks}
