"""How each family's conversations are written: exact streams, every one readable again, whatever people say."""

from __future__ import annotations

import dataclasses

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies

from intersyn_jax.data import pipeline
from intersyn_jax.decoding import sampling
from intersyn_jax.errors import UserError
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.checkpoint_tokenizer import CheckpointTokenizer
from intersyn_jax.interleave.layout import CODE, CODES, FEATURES, STOP, TAGS, Layout
from intersyn_jax.interleave.types import Conversation, Image, Text, Turn
from intersyn_jax.judge import views
from intersyn_jax.models.families import layouts, liquid
from tests.families import tiny_tokenizers as tiny

CASES = [*((family, 'chat') for family in tiny.MODULES), *((family, 'generation') for family in ('emu3', 'janus', 'liquid'))]
HOSTILE = ['USER:', ' ASSISTANT:', '. ASSISTANT:', '</s>', '<think>', '</vis>', '<eos>', '<end_of_turn>\n', '<|extra_204|>',
           '<|User|>: ', '<boi>', '<im_start>', ' Generate an image based on this description.', ' ', '  ', 'é😀', 'a red circle']


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> dict[tuple[str, str], Layout]:
  root = tmp_path_factory.mktemp('tokenizers')
  return {(family, name): tiny.layout(family, root / family, name) for family, name in CASES}


def picture(layout_: Layout, seed: int) -> Image:
  shape = (layout_.block.places, layout_.block.depth)
  return Image(b'bytes', np.random.default_rng(seed).integers(0, layout_.block.codebook, shape).astype(np.int32))


@strategies.composite
def conversations(draw, layout_: Layout):
  plain = strategies.text(strategies.characters(blacklist_characters='▁', blacklist_categories=['Cs']), min_size=1, max_size=6)
  text = strategies.lists(strategies.one_of(strategies.sampled_from(HOSTILE), plain), min_size=1, max_size=3)
  part = strategies.one_of(text.map(lambda t: Text(''.join(t))), strategies.integers(0, 9).map(lambda s: picture(layout_, s)))

  def run(parts):  # neighbouring texts would be read back as one
    twice = lambda p, before: isinstance(p, Text) and isinstance(before, Text)
    return tuple(p for p, before in zip(parts, [None, *parts], strict=False) if not twice(p, before))

  segments = strategies.lists(part, max_size=3).map(run)
  turns = draw(strategies.lists(strategies.builds(Turn, segments, segments), min_size=1, max_size=3))
  return Conversation('c', 't', tuple(turns))


def as_read(conversation: Conversation, layout_: Layout) -> tuple[Turn, ...]:
  """What comes back: images as codes alone; where they are read as features, nothing of them."""
  codes = lambda parts: tuple(Image(codes=p.codes) if isinstance(p, Image) else p for p in parts)
  seen = lambda parts: tuple(Image() if isinstance(p, Image) and layout_.features else p for p in codes(parts))
  return tuple(Turn(seen(t.question), codes(t.answer)) for t in conversation.turns)


@pytest.mark.parametrize('case', CASES)
@hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(data=strategies.data())
def test_a_conversation_comes_back(case, data, built):
  layout_ = built[case]
  conversation = data.draw(conversations(layout_))
  document = layout.tokenise(conversation, layout_)
  assert layout.turns_of(document, layout_) == as_read(conversation, layout_)
  prompt = layout.prompt(conversation, layout_)
  for field in dataclasses.fields(prompt):
    piece = getattr(document, field.name)[:len(prompt.text)]
    np.testing.assert_array_equal(getattr(prompt, field.name), piece, err_msg=field.name)
  assert layout.answer_begins(document, len(conversation.turns) - 1) == len(prompt.text)
  answer = (getattr(document, name)[len(prompt.text):] for name in ('text', 'codes', 'modality'))
  read = layout.answer_of(*answer, layout_, document.forced[len(prompt.text):])
  assert read == as_read(conversation, layout_)[-1].answer


def ask(layout_: Layout, *question) -> list[int]:
  return layout.prompt(Conversation('c', 't', (Turn(question),)), layout_).text.tolist()


def test_streams(built):
  """Prompts spelled out, id by id."""
  chameleon = built['chameleon', 'chat']
  special, encode = chameleon.tokenizer.special, chameleon.tokenizer.encode
  assert ask(chameleon, Text('a red')) == [special('<s>'), *encode('a red'), special('<reserved08706>')]
  assert chameleon.block.template == (CODE,) * 16 + (special('<eoss>'),) and chameleon.block.begin == special('<racm3:break>')
  assert layout.null_prompt(chameleon).text.tolist() == [special('<s>')]

  emu3 = built['emu3', 'chat']
  special, encode = emu3.tokenizer.special, emu3.tokenizer.encode
  assert ask(emu3, Text('a red')) == [
      special('<|extra_203|>'), *encode('You are a helpful assistant.'), *encode(' USER:'), *encode(' a red'),
      *encode('. ASSISTANT:')]
  line = (CODE,) * 8 + (special('<|extra_200|>'),)
  assert emu3.block.template == (*encode('8*8'), special('<|image token|>'), *line * 8, special('<|extra_201|>'),
                                 special('<|image end|>'))
  assert emu3.block.begin == special('<|image start|>')
  assert ask(built['emu3', 'generation'], Text('a red')) == [special('<|extra_203|>'), *encode('a red')]
  assert layout.null_prompt(emu3).text.tolist() == [special('<|extra_203|>'), *encode(layouts.EMU3_AVOID)]

  janus = built['janus', 'generation']
  special, encode = janus.tokenizer.special, janus.tokenizer.encode
  begin, pad = special('<｜begin▁of▁sentence｜>'), special('<｜▁pad▁｜>')
  assert ask(janus, Text('a red')) == [
      begin, special('<|User|>'), *encode(': a red'), *encode('\n\n'), special('<|Assistant|>'), *encode(':')]
  assert layout.null_prompt(janus).text.tolist() == [begin] + [pad] * (len(ask(janus)) - 1)
  assert ask(built['janus', 'chat'])[1:-len(ask(janus)) + 1] == encode(layouts.JANUS_SYSTEM)

  liquid = built['liquid', 'chat']
  special, encode = liquid.tokenizer.special, liquid.tokenizer.encode
  turn, close = special('<start_of_turn>'), [special('<end_of_turn>'), *encode('\n')]
  assert ask(liquid, Text('a red')) == [
      special('<bos>'), turn, *encode('user\n'), *encode('a red'), *close, turn, *encode('model\n')]
  assert liquid.template.end == (*close, special('<eos>')) and liquid.special(STOP) == special('<eos>')
  assert layout.null_prompt(liquid).text.tolist() == [special('<bos>'), special('<unconditional>')]
  assert ask(built['liquid', 'generation'], Text('a red')) == [
      special('<bos>'), *encode('a red'), *encode(' Generate an image based on this description.')]

  vila_u = built['vila_u', 'chat']
  special, encode, system = vila_u.tokenizer.special, vila_u.tokenizer.encode, layouts.VILA_U_SYSTEM
  whole = [special('<s>'), *encode(f'{system} USER: a red ASSISTANT:')]
  assert ask(vila_u, Text('a red')) == whole  # this tokenizer never joins words, so pieces are the whole
  assert layout.null_prompt(vila_u).text.tolist() == [special('<s>'), *encode(f'{system} USER:ASSISTANT: ')]
  assert ask(vila_u, picture(vila_u, 0))[len([special('<s>'), *encode(f'{system} USER:')]):][:2] == [
      special('▁'), special('<im_start>')]
  assert vila_u.block.depth == 4 and vila_u.block.template[-1] == special('<im_end>')


@pytest.mark.parametrize('case', CASES)
def test_text_never_becomes_a_mark(case, built):
  layout_ = built[case]
  tokenizer, hf = layout_.tokenizer, tiny.MODULES[case[0]].SIZES['tiny']
  spelled = [*tiny.names(case[0], hf), *TAGS, '<s>', '</s>', '<0x0A>']
  for text in (*spelled, ''.join(spelled), ' '.join(spelled), '\x00\U0010ffff\n'):
    ids = tokenizer.encode(text)
    assert not tokenizer.specials & set(ids) and tokenizer.decode(ids) == text
  assert tokenizer.decode([*layout_.tags, *tokenizer.encode('a red'), layout_.block.begin]) == 'a red'


@pytest.mark.parametrize('case', CASES)
def test_what_a_model_may_choose(case, built):
  layout_ = built[case]
  vocabulary = tiny.MODULES[case[0]].model(tiny.MODULES[case[0]].SIZES['tiny']).vocabulary
  assert layout_.tokenizer.size == vocabulary + len(layout_.tokenizer.appended)
  free = {*layout_.tags, layout_.block.begin, *layout_.template.end}
  allowed = sampling.choosable(layout_, layout_.tokenizer.size + 3)
  assert set(np.flatnonzero(allowed)) == set(range(layout_.tokenizer.size)) - layout_.tokenizer.specials | free
  assert len({*layout_.tags, layout_.block.begin, layout_.special(STOP)}) == 6
  words = set(np.flatnonzero(sampling.words(layout_, layout_.tokenizer.size)))
  assert words == set(range(layout_.tokenizer.size)) - layout_.tokenizer.specials
  assert words >= {*layout_.tokenizer.encode('a red circle\n\x00é')}


def test_tags(built):
  tags = lambda family: [built[family, 'chat'].tokenizer.special(name) for name in reserved[family]]
  reserved = {'chameleon': [f'<reserved{i:05d}>' for i in range(8708, 8712)], 'emu3': [f'<|extra_{i}|>' for i in range(4)],
              'liquid': [f'<unused{i}>' for i in range(3, 7)]}
  for family in reserved:
    assert list(built[family, 'chat'].tags) == tags(family)
  assert built['janus', 'chat'].tags == tuple(range(576, 580))  # rows of the checkpoint that no token uses
  tokenizer = built['vila_u', 'chat'].tokenizer
  assert built['vila_u', 'chat'].tags == tuple(range(580, 584)) and tokenizer.size == 584
  assert tokenizer.appended == {name: tuple(tokenizer.encode(name[1:-1])) for name in TAGS}


@pytest.mark.parametrize('case', [(family, 'chat') for family in tiny.MODULES])
def test_the_grammar_reads_what_is_written(case, built):
  """An interleaved answer keeps the format, to the last id of its end, with whatever the block has inside."""
  layout_ = built[case]
  answer = (Text('one'), picture(layout_, 1), Text('two'), picture(layout_, 2))
  conversation = Conversation('c', 't', (Turn((Text('a'),), answer),))
  start = len(layout.prompt(conversation, layout_).text)
  document = jax.tree.map(lambda a: a[start:], layout.tokenise(conversation, layout_))
  short = jax.tree.map(lambda a: a[:-1], document)
  length = len(document.text) + 2
  parse = jax.device_get(jax.jit(lambda b: grammar.parse(b, layout_, 2))(layout.stack([document, short], length)))
  assert parse.well_formed.tolist() == [True, False] and parse.steps[0] == 2
  step = document.step >= 0
  np.testing.assert_array_equal(parse.step[0, :len(step)][step], document.step[step])


def test_views_of_an_answer_that_several_ids_close(built):
  layout_ = built['liquid', 'chat']
  conversation = Conversation('c', 't', (Turn((Text('a red<end_of_turn>\n<eos>'),), (Text('one'), picture(layout_, 1))),))
  seen = jax.jit(lambda b: views.build(b, layout_, views.Widths(64, 64, 96), 1))(
      layout.stack([layout.tokenise(conversation, layout_)], 96))
  prompt = ask(layout_, Text('a red<end_of_turn>\n<eos>'))
  think, think_end, *_ = layout_.tags
  expected = [*prompt, think, *layout_.tokenizer.encode('one'), think_end, layout_.special(STOP)]
  assert np.asarray(seen.tcc.tokens.text)[0, :len(expected)].tolist() == expected and int(seen.tcc.end[0]) == len(expected) - 1
  assert np.asarray(seen.fits).all()


def test_features(built):
  """Images of Janus's questions name rows of features; those of answers are codes; stacking counts on."""
  layout_ = built['janus', 'chat']
  turns = (Turn((picture(layout_, 0), Text('a')), (picture(layout_, 1),)), Turn((picture(layout_, 2),), (Text('b'),)))
  one = layout.tokenise(Conversation('c', 't', turns), layout_)
  other = layout.tokenise(Conversation('d', 't', turns[:1]), layout_)
  places = layout_.block.places
  rows = lambda d: d.codes[d.modality == FEATURES][:, 0]
  np.testing.assert_array_equal(rows(one), np.arange(2 * places))
  np.testing.assert_array_equal(one.codes[one.modality == CODES], turns[0].answer[0].codes)
  assert not one.loss[one.modality == FEATURES].any() and (one.loss[one.modality == CODES] == 1).all()
  for left in (False, True):
    stacked = layout.stack([one, other, one], len(one.text) + 3, left=left)
    np.testing.assert_array_equal(rows(stacked), np.arange(5 * places))
    np.testing.assert_array_equal(stacked.codes[1][stacked.modality[1] == CODES], turns[0].answer[0].codes)
  assert (built['emu3', 'chat'].features, layout_.features) == (False, True)
  with pytest.raises(UserError, match='record c of split train has a picture in a question'):
    pipeline.Documents({'train': [Conversation('c', 't', turns)]}, layout_, length=1000)
  with pytest.raises(UserError, match='record c: an image of a question has no picture'):
    layout.tokenise(Conversation('c', 't', (Turn((Image(codes=turns[0].answer[0].codes),)),)), layout_)


def test_a_null_document_begins_like_the_null_prompt(built):
  for case in CASES:
    layout_ = built[case]
    conversation = Conversation('c', 't', (Turn((Text('a red'),), (picture(layout_, 1),)),))
    dropped, null = layout.tokenise(conversation, layout_, drop_question=True), layout.null_prompt(layout_)
    np.testing.assert_array_equal(dropped.text[:len(null.text)], null.text)
    full = layout.tokenise(conversation, layout_)
    begins = layout.answer_begins(full, 0)
    np.testing.assert_array_equal(dropped.text[len(null.text):], full.text[begins:])
    assert layout.answer_begins(dropped, 0) == len(null.text) and layout.turns_of(dropped, layout_)[0].answer == layout.turns_of(
        full, layout_)[0].answer


@pytest.mark.parametrize('family', tiny.MODULES)
def test_a_saved_tokenizer_gives_the_same_layout(family, built, tmp_path):
  layout_ = built[family, 'chat']
  layout_.tokenizer.save(tmp_path / 'text.json')
  loaded = CheckpointTokenizer.load(tmp_path / 'text.json')
  again = layouts.LAYOUTS[family](loaded, tiny.MODULES[family].model(tiny.MODULES[family].SIZES['tiny']))
  assert dataclasses.replace(again, tokenizer=layout_.tokenizer) == layout_
  assert loaded.size == layout_.tokenizer.size and loaded.specials == layout_.tokenizer.specials
  assert loaded.encode('a red circle') == layout_.tokenizer.encode('a red circle')


def test_ids_of_the_public_chameleon(tmp_path):
  """8192 image ids from 4 on are taken out: what follows moves down by as many."""
  layout_ = tiny.layout('chameleon', tmp_path, size='7b')
  assert (layout_.block.begin, layout_.block.template[-1], layout_.block.places, layout_.tokenizer.size) == (5, 4, 1024, 57344)


def test_wrong_tokenizers(tmp_path):
  for template, message in (('poem', 'template is'), ('checkpoint', 'no chat_template')):
    with pytest.raises(UserError, match=message):
      tiny.layout('liquid', tmp_path, template)
  hf = tiny.MODULES['liquid'].SIZES['tiny']
  path = tmp_path / 'tokenizer.json'
  path.write_text(path.read_text().replace('<boi>', '<beginning>'))
  with pytest.raises(UserError, match='no token <boi>'):
    layouts.liquid(tiny.read('liquid', tmp_path, hf), liquid.model(hf))
