"""The hierarchy and the splits."""

import pytest

from intersyn_jax.data.storyworld.topics import SPLITS, all_topics, parse_topic, split_of, topics_of


def test_size_of_the_hierarchy():
  parts = [str(topic).split('/') for topic in all_topics()]
  assert len({domain for domain, _, _ in parts}) == 8
  assert len({category for _, category, _ in parts}) == 40
  assert len({topic for _, _, topic in parts}) == 960 == len(all_topics())


def test_topics_parse_back():
  for topic in all_topics():
    assert parse_topic(str(topic)) == topic
    assert parse_topic(topic.phrase) == topic
  for text in ('', 'cats', 'moving a red circle on mars', 'moving/moving a ring/moving a red circle on sand'):
    with pytest.raises(ValueError, match='topic'):
      parse_topic(text)


def test_splits_share_no_topic_and_have_their_sizes():
  found = {split: set(topics_of(split)) for split in SPLITS}
  assert set().union(*found.values()) == set(all_topics())
  assert sum(map(len, found.values())) == len(all_topics())
  for split, share in SPLITS.items():
    assert abs(len(found[split]) / len(all_topics()) - share / 100) < 0.04, split
  with pytest.raises(ValueError, match='unknown split'):
    topics_of('train')


def test_held_out_topics_hold_no_new_word():
  known = {word for topic in topics_of('policy') for word in topic.phrase.split()}
  for split in SPLITS:
    assert {word for topic in topics_of(split) for word in topic.phrase.split()} <= known


def test_every_domain_and_category_occurs_in_every_large_split():
  for split in ('roles', 'policy', 'test'):
    parts = [str(topic).split('/') for topic in topics_of(split)]
    assert len({domain for domain, _, _ in parts}) == 8, split
    if split != 'test':
      assert len({category for _, category, _ in parts}) == 40, split


PINNED = ['policy', 'policy', 'policy', 'roles', 'policy', 'roles', 'roles', 'test']
"""Splits of the first topics: data on disk and published tables rest on them."""


def test_splits_never_move():
  assert [split_of(topic) for topic in all_topics()[:8]] == PINNED
