"""The verify report as one HTML file without external assets: a table, notes, drift curves as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jinja2 import Environment
from markupsafe import Markup

from linmu.verification.report import LEVELS, Curve, VerifyReport, row

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 60, 26
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
FLOOR = 1e-9  # smallest error drawn

STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3em .6em;text-align:left;"
    "vertical-align:top}td{overflow-wrap:anywhere}.ok{color:#1a7f37}.FAILED{color:#b00020;font-weight:bold}"
    "svg{display:block;margin:.5em 0 1.5em}small{color:#666}"
)


# Everything that is filled in is escaped, but for the plots, which are markup.
DOCUMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>linmu verify</title><style>{{ style }}</style></head>
<body>
{% if report.ok %}
<h1>{{ report.bundle }} <span class=ok>agrees with its reference</span></h1>
{% else %}
<h1>{{ report.bundle }} <span class=FAILED>does not agree with its reference</span></h1>
{% endif %}
<p>Reference: {{ report.reference }}. Backends: {{ report.backends | join(", ") }}.</p>
{% if report.culprit %}
<p>First stage that differs: <b class=FAILED>{{ report.culprit }}</b>.</p>
{% endif %}
{% for level in levels %}
<h2>{{ level.name }} <small>{{ level.meaning }}</small></h2>
<table><tr><th>backend</th><th>check</th><th></th><th>worst case</th><th>tolerance</th></tr>
{% for (_, backend, name, verdict, worst, tolerance), note in level.rows %}
<tr><td>{{ backend }}</td><td>{{ name }}{% if note %}<br><small>{{ note }}</small>{% endif %}</td>
<td class={{ verdict }}>{{ verdict }}</td><td>{{ worst }}</td><td>{{ tolerance }}</td></tr>
{% endfor %}
</table>
{% for plot in level.plots %}
{{ plot }}
{% endfor %}
{% endfor %}
</body></html>
"""
)


def report_html(report: VerifyReport) -> str:
    """The whole document."""
    levels = [
        {
            "name": level,
            "meaning": meaning,
            "rows": [(row(check), check.note) for check in report.checks if check.level == level],
            "plots": _plots([curve for curve in report.curves if curve.level == level]),
        }
        for level, meaning in LEVELS.items()
        if any(check.level == level for check in report.checks)
    ]
    return DOCUMENT.render(report=report, levels=levels, style=Markup(STYLE)) + "\n"


def _plots(curves: Sequence[Curve]) -> list[Markup]:
    kinds = dict.fromkeys(curve.kind for curve in curves)
    return [Markup(_plot([curve for curve in curves if curve.kind == kind], kind)) for kind in kinds]


def _plot(curves: Sequence[Curve], kind: str) -> str:
    """One logarithmic plot: error against step, a dashed line at the tolerance, a cross where not finite."""
    tolerance = curves[0].tolerance
    finite = [e for curve in curves for e in curve.errors.values() if math.isfinite(e)] + [tolerance]
    low, high = math.floor(math.log10(max(min(finite), FLOOR))), math.ceil(math.log10(max(max(finite), FLOOR))) + 1
    last = max(max(curve.errors, default=0) for curve in curves) or 1

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - 10) * step / last

    def y(error: float) -> float:
        share = (math.log10(max(error, FLOOR)) - low) / (high - low) if math.isfinite(error) else 1.0
        return (HEIGHT - BOTTOM) * (1 - min(max(share, 0.0), 1.0)) + 4

    lines = [
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(10.0**k):.1f}" y2="{y(10.0**k):.1f}" stroke="#eee"/>'
        f'<text x="{LEFT - 6}" y="{y(10.0**k) + 4:.1f}" text-anchor="end">1e{k}</text>'
        for k in range(low, high + 1)
    ]
    lines.append(
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(tolerance):.1f}" y2="{y(tolerance):.1f}" stroke="#888" '
        f'stroke-dasharray="5 4"/><text x="{WIDTH - 4}" y="{y(tolerance) - 4:.1f}" text-anchor="end">tolerance</text>'
    )
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(s):.1f},{y(e):.1f}" for s, e in sorted(curve.errors.items()) if math.isfinite(e))
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        lines += [
            f'<text x="{x(s):.1f}" y="{y(e) + 8:.1f}" fill="{colour}">✕</text>'
            for s, e in sorted(curve.errors.items())
            if not math.isfinite(e)
        ][:20]
        label = escape(f"{curve.backend} {kind}")
        lines.append(f'<text x="{LEFT + 8}" y="{18 + 15 * number}" fill="{colour}">{label}</text>')
    lines.append(f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">step {last}</text>')
    title = f"<title>{escape(kind)}: largest error per step</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'font-size="11" font-family="system-ui,sans-serif">{title}{"".join(lines)}</svg>'
    )
