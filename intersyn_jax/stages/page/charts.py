"""Small charts as inline SVG: curves, points, intervals, bars. Every mark tells its value when the pointer rests on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

INK, GRID, MUTED = '#24292f', '#e6e8eb', '#6e7781'
COLOURS = ('#2f6f9f', '#c2632d', '#3f8f5b', '#8a5fa8', '#b0383f', '#7a6a1f')
POINTS = 160
"""Most points drawn of one curve; a longer one is averaged in equal windows."""
BARS = 40
"""Most bars of a histogram."""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` round numbers that lie in [low, high]."""
  span = high - low
  if not span > 0:
    return [low]
  raw = span / count
  size = 10.0 ** math.floor(math.log10(raw))
  step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def number(value: float) -> str:
  """A short reading of a number: 12k, 3.4, 0.002."""
  if value == 0:
    return '0'
  if abs(value) >= 1e4:
    return f'{value / 1e3:.3g}k' if abs(value) < 1e6 else f'{value / 1e6:.3g}M'
  if abs(value) < 1e-3:
    return f'{value:.1e}'.replace('.0e', 'e').replace('e-0', 'e-')
  return f'{value:.4g}'


def _svg(width: int, height: int, parts: list[str], label: str) -> Markup:
  # The parts are our own markup; every name and number in them has been escaped where it was put in.
  return Markup(f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
                f'aria-label="{escape(label)}">' + ''.join(parts) + '</svg>')


def _text(x: float, y: float, text: str, anchor: str = 'start', colour: str = MUTED, size: float = 10.5,
          weight: str = '') -> str:
  bold = f' font-weight="{weight}"' if weight else ''
  return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}"{bold}>'
          f'{escape(text)}</text>')


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = GRID, width: float = 1, dash: str = '') -> str:
  dashes = f' stroke-dasharray="{dash}"' if dash else ''
  return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _thin(points: Sequence[tuple[float, float]]) -> np.ndarray:
  """At most POINTS points [n, 2], each the mean of its window."""
  array = np.asarray(points, np.float64).reshape(-1, 2)
  if len(array) <= POINTS:
    return array
  return np.stack([window.mean(0) for window in np.array_split(array, POINTS)])


def _smooth(values: np.ndarray) -> np.ndarray:
  """Centred moving mean over a twelfth of the curve."""
  half = len(values) // 24
  if half == 0:
    return values
  sums = np.concatenate([[0.0], np.cumsum(values)])
  index = np.arange(len(values))
  low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
  return (sums[high] - sums[low]) / (high - low)


def curve(title: str, points: Sequence[tuple[float, float]], colour: str = COLOURS[0], width: int = 356,
          height: int = 196) -> Markup:
  """One metric over steps: the measured values faint, their moving mean strong, the last mean written at the end."""
  data = _thin(points)
  left, right, top, bottom = 46, 52, 26, 24
  x_low, x_high = float(data[:, 0].min()), float(data[:, 0].max())
  # A few first or stray values must not flatten the rest of the curve.
  y_low, y_high = (float(v) for v in np.quantile(data[:, 1], (0.005, 0.995)))
  y_low, y_high = min(y_low, float(data[-1, 1])), max(y_high, float(data[-1, 1]))
  pad = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
  y_low, y_high = y_low - pad, y_high + pad

  def at(x: float, y: float) -> tuple[float, float]:
    u = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
    v = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
    return left + u * (width - left - right), height - bottom - v * (height - top - bottom)

  parts = [_text(left, 14, title, colour=INK, size=12, weight='600')]
  for y in ticks(y_low, y_high, 4):
    parts += [_line(left, at(x_low, y)[1], width - right, at(x_low, y)[1]),
              _text(left - 6, at(x_low, y)[1] + 3.5, number(y), 'end')]
  for x in ticks(x_low, x_high, 4):
    parts.append(_text(at(x, y_low)[0], height - 8, number(x), 'middle'))
  mean = _smooth(data[:, 1])
  raw = ' '.join(f'{px:.1f},{py:.1f}' for px, py in (at(x, y) for x, y in data))
  strong = ' '.join(f'{px:.1f},{py:.1f}' for px, py in (at(x, y) for x, y in zip(data[:, 0], mean)))
  parts += [f'<polyline points="{raw}" fill="none" stroke="{colour}" stroke-width="1" opacity="0.3"/>',
            f'<polyline points="{strong}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>']
  for (x, y), m in zip(data, mean):
    px, py = at(x, m)
    parts.append(f'<circle class="p" cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}"><title>step {number(x)}: '
                 f'{number(y)}</title></circle>')
  px, py = at(data[-1, 0], mean[-1])
  parts.append(_text(px + 5, py + 3.5, number(float(f'{mean[-1]:.3g}')), colour=colour, weight='600'))
  return _svg(width, height, parts, title)


def scatter(title: str, pairs: Sequence[Sequence[float]], note: str, width: int = 262, height: int = 292) -> Markup:
  """Judge against truth, both 0-5, with the line where they agree. Truth is moved a little aside, so that equals show."""
  left, top, side = 34, 42, width - 46
  rng = np.random.default_rng(0)

  def at(x: float, y: float) -> tuple[float, float]:
    return left + (x + 0.25) / 5.5 * side, top + side - (y + 0.25) / 5.5 * side

  parts = [_text(left, 14, title, colour=INK, size=12, weight='600'), _text(left, 30, note)]
  for v in range(6):
    parts += [_line(left, at(0, v)[1], left + side, at(0, v)[1]), _line(at(v, 0)[0], top, at(v, 0)[0], top + side),
              _text(left - 6, at(0, v)[1] + 3.5, str(v), 'end'), _text(at(v, 0)[0], top + side + 14, str(v), 'middle')]
  parts.append(_line(*at(0, 0), *at(5, 5), colour=MUTED, dash='3 3'))
  for truth, judge in pairs:
    x, y = at(truth + rng.uniform(-0.12, 0.12), min(max(judge, -0.2), 5.2))
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{COLOURS[0]}" opacity="0.3"><title>truth '
                 f'{truth:.2f}, judge {judge:.2f}</title></circle>')
  parts.append(_text(left + side / 2, height - 4, 'truth (across), judge (up)', 'middle'))
  return _svg(width, height, parts, title)


def intervals(rows: Sequence[Mapping[str, object]], width: int = 760, label: int = 300) -> Markup:
  """Differences with their 95 % intervals around zero; a row is {label, value, low, high}. Coloured where 0 is outside.

  `label` is the room for the labels.
  """
  tail, step, top = 150, 22, 8
  height = top + step * len(rows) + 24
  low = min(0.0, *(float(r['low']) for r in rows))
  high = max(0.0, *(float(r['high']) for r in rows))
  pad = (high - low) * 0.05 or 0.1
  low, high = low - pad, high + pad

  def at(x: float) -> float:
    return label + (x - low) / (high - low) * (width - label - tail)

  parts = []
  for x in ticks(low, high, 6):
    parts += [_line(at(x), top, at(x), height - 20), _text(at(x), height - 6, number(x), 'middle')]
  parts.append(_line(at(0), top, at(0), height - 20, colour=MUTED))
  for i, row in enumerate(rows):
    y = top + step * (i + 0.5)
    value, a, b = float(row['value']), float(row['low']), float(row['high'])
    colour = COLOURS[2] if a > 0 else COLOURS[4] if b < 0 else MUTED
    text = f'{value:+.3f}  [{a:+.3f}, {b:+.3f}]'
    parts += [_text(label - 12, y + 3.5, str(row['label']), 'end', INK),
              _line(at(a), y, at(b), y, colour, 2.2),
              f'<circle cx="{at(value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(text)}</title></circle>',
              _text(width - tail + 10, y + 3.5, text, colour=colour)]
  return _svg(width, height, parts, 'paired differences')


def reliability(title: str, points: Sequence[tuple[float, float, float]], note: str, width: int = 262,
                height: int = 292) -> Markup:
  """Mean target against mean probability of each bin, [mean probability, mean target, count], both 0-1; the area of a point
  is its share of the pairs, and the broken line is where a calibrated judge lies."""
  left, top, side = 34, 42, width - 46
  at = lambda x, y: (left + (x + 0.03) / 1.06 * side, top + side - (y + 0.03) / 1.06 * side)
  parts = [_text(left, 14, title, colour=INK, size=12, weight='600'), _text(left, 30, note)]
  for v in (0, 0.25, 0.5, 0.75, 1):
    parts += [_line(left, at(0, v)[1], left + side, at(0, v)[1]), _line(at(v, 0)[0], top, at(v, 0)[0], top + side),
              _text(left - 4, at(0, v)[1] + 3.5, number(v), 'end'), _text(at(v, 0)[0], top + side + 14, number(v), 'middle')]
  parts.append(_line(*at(0, 0), *at(1, 1), colour=MUTED, dash='3 3'))
  total = sum(count for _, _, count in points) or 1
  line = ' '.join('{:.1f},{:.1f}'.format(*at(x, y)) for x, y, _ in points)
  parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[0]}" stroke-width="1.4" opacity="0.6"/>')
  for x, y, count in points:
    px, py = at(x, y)
    parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{2 + 9 * math.sqrt(count / total):.1f}" fill="{COLOURS[0]}" '
                 f'opacity="0.65"><title>said {x:.3f}, is {y:.3f}, {count:.0f} questions</title></circle>')
  parts.append(_text(left + side / 2, height - 4, 'probability said (across), true (up)', 'middle'))
  return _svg(width, height, parts, f'reliability of {title}')


def histogram(title: str, counts: Mapping[int, int], width: int = 356, height: int = 196) -> Markup:
  """Shares of whole numbers, `counts` being how often each occurs. The last bar also holds the few values beyond it."""
  values = np.asarray(sorted(counts), np.int64)
  sizes = np.asarray([counts[value] for value in values.tolist()], np.int64)
  total = int(sizes.sum())
  if not total:
    return _svg(width, height, [_text(46, 14, title, colour=INK, size=12, weight='600'), _text(46, 32, 'none')], title)
  below = np.cumsum(sizes)
  quantile = lambda share: int(values[np.searchsorted(below, share * total)])
  first, last, most = int(values[0]), quantile(0.995), int(values[-1])
  wide = -(-(last - first + 1) // BARS)
  bars = np.bincount((np.minimum(values, last) - first) // wide, sizes).astype(np.int64)
  note = f'mean {number(float(values @ sizes / total))}, median {quantile(0.5)}, 95 % up to {quantile(0.95)}, most {most:,}'
  left, right, top, bottom = 46, 8, 42, 24
  one = (width - left - right) / len(bars)
  high = float(bars.max()) / total
  at = lambda share: height - bottom - share / high * (height - top - bottom)
  parts = [_text(left, 14, title, colour=INK, size=12, weight='600'), _text(left, 30, note)]
  for y in ticks(0, high, 3):
    parts += [_line(left, at(y), width - right, at(y)), _text(left - 6, at(y) + 3.5, f'{100 * y:.3g} %', 'end')]
  for i, size in enumerate(bars.tolist()):
    low = first + i * wide
    end = most if i == len(bars) - 1 else low + wide - 1
    told = f'{low}' if end == low else f'{low} to {end:,}'
    parts.append(f'<rect x="{left + i * one + one * 0.06:.1f}" y="{at(size / total):.1f}" width="{one * 0.88:.1f}" '
                 f'height="{height - bottom - at(size / total):.1f}" fill="{COLOURS[0]}" opacity="0.75"><title>{told}: '
                 f'{size:,} ({100 * size / total:.1f} %)</title></rect>')
  for x in sorted({round(x) for x in ticks(first, last, 6) if abs(x - round(x)) < 1e-6}):
    parts.append(_text(left + ((x - first) // wide + 0.5) * one, height - 8, f'{x:,}', 'middle'))
  return _svg(width, height, parts, title)
