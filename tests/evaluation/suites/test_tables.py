"""How scores become tables: intervals, counts, and the averages that papers have published."""

import numpy as np
import pytest

from intersyn_jax.evaluation.suites import tables
from intersyn_jax.evaluation.suites.interleaved_bench import ASPECTS, InterleavedBench
from intersyn_jax.evaluation.suites.mmie import CATEGORIES, Mmie
from intersyn_jax.evaluation.suites.opening import DIMENSIONS, Opening
from intersyn_jax.evaluation.suites.suite import Verdict
from tests.evaluation.suites import samples

BOOT = tables.Bootstrap(100)

MMIE = {'MiniGPT-5': (47.63, 55.12, 42.17, 50.92), 'EMU-2': (39.65, 46.12, 50.75, 45.33),
        'GILL': (46.72, 57.57, 39.33, 51.58), 'Anole': (48.95, 59.05, 51.72, 55.22), 'QLoRA': (53.12, 60.34, 53.28, 57.27),
        'full': (56.87, 62.28, 54.31, 59.50)}
"""Situational analysis, project-based learning, multi-step reasoning and average, in percent (Unified GRPO)."""
MMIE_COUNTS = (5005, 11482, 3616)

INTERLEAVED_BENCH = {'MiniGPT-5': (1.22, 2.45, 1.62, 2.03, 1.77, 1.82), 'EMU-2': (1.26, 2.28, 1.89, 1.34, 1.64, 1.68),
                     'GILL': (0.75, 3.21, 2.25, 1.53, 1.48, 1.84), 'QLoRA': (2.33, 3.39, 3.01, 2.75, 2.85, 2.87),
                     'full': (2.86, 3.58, 3.25, 3.02, 2.94, 3.13)}
"""The five aspects and their average (the same paper)."""

OPENING = {'Human': (8.65, 8.86, 8.89, 8.38, 9.03, 8.77, 7.42, 8.57),
           'GPT-4o+DALL-E3': (7.98, 8.15, 8.38, 8.01, 8.77, 8.66, 7.42, 8.2),
           'Anole': (5.06, 4.9, 5.81, 6.02, 6.91, 6.27, 5.28, 5.75),
           'Show-o': (3.76, 4.04, 4.33, 4.79, 5.78, 4.37, 3.83, 4.41)}
"""The seven criteria and the overall score (the summary in OpenING's repository)."""


def of(suite, entries):
  """A suite with these categories by id, without a file."""
  made = object.__new__(suite)
  made.entries = {name: type('Entry', (), {'category': category, 'id': name})() for name, category in entries.items()}
  return made


def printed(published):
  """Equal with two decimals, or 0.01 apart: of EMU-2 the average of the printed means is 45.342, where 45.33 is printed."""
  return pytest.approx(published, abs=0.01 + 1e-9)


@pytest.mark.parametrize('model', MMIE)
def test_mmie_averages_are_the_published_ones(model):
  *means, published = MMIE[model]
  assert round(tables.weighted(means, MMIE_COUNTS), 2) == printed(published)


def test_mmie_averages_come_out_of_single_answers():
  *means, published = MMIE['full']
  verdicts, entries = {}, {}
  for category, mean, count in zip(CATEGORIES, means, MMIE_COUNTS, strict=True):
    for number in range(count):
      entries[f'{category}{number}'] = category
      verdicts[f'{category}{number}'] = Verdict({'score': mean / 100 * 6})
  found = of(Mmie, entries).summary(verdicts, tables.Bootstrap(5))
  assert round(found['percent'], 2) == printed(published) and found['percent.n'] == sum(MMIE_COUNTS) == 20103
  assert [found[f'{c}.percent'] for c in CATEGORIES] == pytest.approx(means)
  assert abs(np.mean(means) - published) > 1  # a plain mean of the categories is another number


@pytest.mark.parametrize('model', INTERLEAVED_BENCH)
def test_interleaved_bench_averages_are_the_published_ones(model):
  *means, published = INTERLEAVED_BENCH[model]
  # Two stories and an edit: the aspects of text come from the stories alone.
  verdicts = {'a': Verdict(dict(zip(ASPECTS, means, strict=True))), 'b': Verdict(dict(zip(ASPECTS, means, strict=True))),
              'e': Verdict({a: m for a, m in zip(ASPECTS, means, strict=True) if not a.startswith('text_')})}
  found = of(InterleavedBench, {'a': 'story', 'b': 'story', 'e': 'image_editing'}).summary(verdicts, BOOT)
  assert found['average'] == pytest.approx(published, abs=0.01)
  assert (found['text_quality.n'], found['helpfulness.n']) == (2, 3)


@pytest.mark.parametrize('model', OPENING)
def test_opening_overall_scores_are_the_published_ones(model):
  *means, published = OPENING[model]
  found = of(Opening, {'q': 'task'}).summary({'q': Verdict(dict(zip(DIMENSIONS, means, strict=True)))}, BOOT)
  assert found['overall'] == pytest.approx(published, abs=0.01)


def test_the_mean_leaves_failures_out_and_has_an_interval():
  column = np.array([1.0, np.nan, 3.0, 2.0, np.nan])
  found = tables.mean('x', column, tables.Bootstrap(4000))
  assert found['x'] == 2 and found['x.n'] == 3
  assert 1 <= found['x.low'] < 2 < found['x.high'] <= 3
  assert tables.mean('x', column[[1, 4]], BOOT) == {'x': None, 'x.low': None, 'x.high': None, 'x.n': 0}
  assert tables.mean('x', np.zeros(0), BOOT)['x.n'] == 0


def test_the_interval_is_that_of_the_bootstrap():
  scores = np.random.default_rng(0).normal(3, 1, 400)
  found = tables.mean('x', scores, tables.Bootstrap(2000))
  error = scores.std() / np.sqrt(len(scores))
  assert found['x.low'] == pytest.approx(scores.mean() - 1.96 * error, abs=0.02)
  assert found['x.high'] == pytest.approx(scores.mean() + 1.96 * error, abs=0.02)


def test_a_statistic_of_columns_with_holes():
  columns = np.array([[1.0, np.nan], [3.0, 4.0], [np.nan, np.nan]])
  found = tables.statistic('x', columns, lambda means: means.mean(axis=-1), BOOT)
  assert found['x'] == pytest.approx((2 + 4) / 2) and found['x.n'] == 2
  empty = tables.statistic('x', np.array([[1.0, np.nan], [2.0, np.nan]]), lambda means: means.mean(axis=-1), BOOT)
  assert empty['x'] is None and empty['x.n'] == 2  # a column without any score has no mean, and is no zero


def test_counts_tell_failed_from_missing():
  verdicts = [samples.scored(score=1), samples.FAILED, samples.GONE, samples.GONE]
  assert tables.counts(verdicts) == {'questions': 4, 'judged': 1, 'failed': 1, 'missing': 2, 'failed.no JSON': 1,
                                     'missing.no answer': 2}
  assert tables.weighted([50.0, None], [3, 0]) == 50 and tables.weighted([None], [0]) is None
  assert tables.slug('Gemini 1.5  pro') == 'Gemini_1_5_pro' and tables.slug('') == 'none' == tables.slug('\x1b\n')
