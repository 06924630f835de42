"""Curves as an SVG, without a drawing library."""

from __future__ import annotations

import math
from html import escape

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 44, 48
# Told apart by those who cannot tell red from green, too (Okabe and Ito).
COLORS = ("#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")


def curves(title: str, lines: dict[str, list[float]]) -> str:
    """Lines over their index, on a logarithmic scale; names that share their first
    word share a color, and those with more words are dashed."""
    finite = [v for line in lines.values() for v in line if math.isfinite(v) and v > 0]
    low, high = math.log10(min(finite)) - 0.02, math.log10(max(finite)) + 0.02
    count = max(len(line) for line in lines.values())

    def x(at: float) -> float:
        return LEFT + at / max(count - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (math.log10(max(value, 1e-30)) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for step in range(6):
        value = 10 ** (low + (high - low) * step / 5)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            'stroke="#dddddd"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    for at in range(0, count, max(1, count // 10)):
        parts.append(
            f'<text x="{x(at):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{at}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">round</text>')
    families = list(dict.fromkeys(name.split()[0] for name in lines))
    for row, (name, line) in enumerate(lines.items()):
        color = COLORS[families.index(name.split()[0]) % len(COLORS)]
        dashes = ' stroke-dasharray="5 4"' if " " in name else ""
        points = " ".join(f"{x(at):.1f},{y(v):.1f}" for at, v in enumerate(line))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>'
        )
        at = TOP + 12 + 22 * row
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 14}" x2="{WIDTH - RIGHT + 44}" y1="{at}" y2="{at}" '
            f'stroke="{color}" stroke-width="2"{dashes}/>'
            f'<text x="{WIDTH - RIGHT + 52}" y="{at + 4}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
