"""SEIR for one conversation: the loop of the paper, and none of the defects of its released code (intersyn.md 1.5)."""

import ast
import dataclasses
import pathlib

import pytest

import intersyn_jax.synthesis
from intersyn_jax.data import roles
from intersyn_jax.interleave.types import Text, images_of, steps_of, text_of
from intersyn_jax.synthesis import engine, seir
from intersyn_jax.synthesis.interfaces import Address, Draw, Look, Rate, Rating, Reply
from intersyn_jax.synthesis.seir import Rounds
from tests.synthesis import fake


def make(answer=fake.usual, index=0, **fields):
  """One conversation by a scripted crew."""
  method, actor = fake.method(**fields), fake.Actor(answer)
  made = engine.advance(fake.crew(actor), {0: seir.converse(seir.plan(method, index), method)})
  return made[0], actor


def answering(**by_role):
  """The usual crew with other answers of some roles: a text, or a function of the request."""
  def answer(request):
    role = 'rate' if isinstance(request, Rate) else request.address.role
    if role not in by_role:
      return fake.usual(request)
    given = by_role[role]
    given = given(request) if callable(given) else given
    return Reply(given) if isinstance(given, str) else given
  return answer


def decisions(rounds):
  return [entry.decision for entry in rounds]


def test_a_conversation_goes_through_question_answer_and_image_refinement():
  product, actor = make(turns=(2,))
  assert product.reason == '' and len(product.conversation.turns) == 2
  first = product.conversation.turns[0]
  assert text_of(first.question).endswith(' 0 1')  # revised once, then the critic was content
  assert [text for text, _ in steps_of(first.answer)] == [f'{s.text} 1' for s in fake.STEPS]
  assert [image.caption for image in images_of(first.answer)] == ['large red cross top left on sand 1'] * 2
  turn = product.turns[0]
  for rounds in (turn.questions, turn.answers, *turn.images):
    assert decisions(rounds) == ['revise', 'stop']
  assert len(turn.images) == 2
  assert product.conversation.generator == 'seir' and product.conversation.trace == product.conversation.id
  # Per turn: 1 + 3 question calls, 1 + 3 answer calls, and per step 2 pictures, 2 critiques, 1 caption.
  assert len(actor.requests) == 2 * (4 + 4 + 2 * 5)


def test_rounds_end_at_k():
  product, actor = make(answering(image_critique='more', question_critique='more'), rounds=Rounds(3, 0, 2))
  turn = product.turns[0]
  assert decisions(turn.questions) == ['revise'] * 3 + ['last']
  assert decisions(turn.answers) == ['last'] and not actor.asked('answer_critique')
  assert [decisions(rounds) for rounds in turn.images] == [['revise'] * 2 + ['last']] * 2


def test_the_image_critic_always_sees_the_caption_that_its_picture_was_drawn_from():
  """Defect 1: the released critic judges every new picture against the first caption."""
  product, actor = make(answering(image_critique='more'), rounds=Rounds(0, 0, 3))
  drawn = {}
  for request in actor.requests:
    if isinstance(request, Draw):
      drawn[fake.picture(request.address.number()).codes.tobytes()] = text_of(request.prompt)
  looks = [request for request in actor.requests if isinstance(request, Look)]
  assert len(looks) == 6
  captions = set()
  for request in looks:
    caption = text_of(request.prompt).split('caption : ')[1]
    assert drawn[images_of(request.prompt)[0].codes.tobytes()] == f'draw {caption} .'
    captions.add(caption)
  assert len(captions) == 2 + 2  # two first captions, then those of rounds 1 and 2
  for rounds, image in zip(product.turns[0].images, images_of(product.conversation.turns[0].answer), strict=True):
    assert rounds[-1].version.image == image and rounds[-1].version.caption == image.caption


@pytest.mark.parametrize('word', ['none', 'None.', ' NONE ', 'null', '{"suggestion": null}', '"None"', ''])
def test_every_way_to_say_nothing_stops(word):
  """Defect 2: the released code stops at the exact word only."""
  product, _ = make(answering(question_critique=word, answer_critique=word, image_critique=word))
  turn = product.turns[0]
  assert [decisions(rounds) for rounds in (turn.questions, turn.answers, *turn.images)] == [['stop']] * 4


def falling(request):
  """A judge that likes every later picture less, and the second answer less."""
  texts = text_of(request.conversation.turns[-1].answer)
  tcc = 2.0 if ' 1' in texts else 4.0
  images = images_of(request.conversation.turns[-1].answer)
  steps = tuple((tcc, *[4.0 - int(image.caption[-1] == '1') - 2 * int(image.caption[-1] == '2')] * 3) for image in images)
  return Rating((tcc, 1.0, 1.0, 1.0), steps)


def test_a_lower_score_is_rolled_back_and_the_trace_keeps_the_versions():
  """Defect 3: the last revision always wins and overwrites the picture."""
  product, actor = make(answering(rate=falling, image_critique='more', answer_critique='more'), accept='gated')
  turn = product.turns[0]
  assert decisions(turn.answers) == ['revise', 'rollback', 'last']  # round 2 is as good as round 0: kept
  assert [entry.scores[0] for entry in turn.answers] == [4.0, 2.0, 4.0]
  for rounds, image in zip(turn.images, images_of(product.conversation.turns[0].answer), strict=True):
    assert decisions(rounds) == ['revise', 'rollback', 'rollback']
    assert rounds[0].version.image == image  # the first picture stands
    assert len({entry.version.image.codes.tobytes() for entry in rounds}) == 3
  assert len(actor.asked('image_critique')) == 2  # what was said of the standing version still holds


def test_an_answer_is_judged_with_its_captions_drawn_by_which_a_worse_caption_is_taken_back():
  def rate(request):
    green = [image for image in images_of(request.conversation.turns[-1].answer) if 'green' in image.caption]
    return Rating((4.0, 2.0 if green else 4.0, 4.0, 4.0), ((4.0,) * 4,) * 2)

  worse = roles.write_answer([roles.AnswerStep(s.text, s.caption.replace('blue', 'green')) for s in fake.STEPS])
  product, actor = make(answering(rate=rate, answer_revise=worse, image_critique='none'), accept='gated')
  assert decisions(product.turns[0].answers) == ['revise', 'rollback', 'rollback']
  assert [entry.scores for entry in product.turns[0].answers] == [(4.0,) * 4, *[(4.0, 2.0, 4.0, 4.0)] * 2]
  assert [image.caption for image in images_of(product.conversation.turns[0].answer)] == [s.caption for s in fake.STEPS]
  assert len(actor.asked('draw')) == 3  # two captions and the worse one: what was drawn for the judge is drawn once


def test_what_the_judge_finds_poor_is_drawn_anew_though_the_critic_has_nothing_to_say():
  def rate(request):
    answer = request.conversation.turns[-1].answer
    whole = 3.0 if ' 0' in text_of(answer) else 5.0  # the first answer is poor
    of = lambda image: 5.0 if image.codes.tobytes() in good else 3.0
    return Rating((5.0, whole, 5.0, 5.0), tuple((5.0, of(image), 5.0, 5.0) for image in images_of(answer)))

  content = answering(rate=rate, answer_critique='none', image_critique='none')
  good = {fake.picture(Address(seir.plan(fake.method(), 0).id, 0, 'draw', step, 1).number()).codes.tobytes() for step in (0, 1)}
  for accept in ('gated', 'best'):
    product, actor = make(content, accept=accept, enough=4.0)
    turn = product.turns[0]
    assert [decisions(rounds) for rounds in (turn.answers, *turn.images)] == [['again', 'stop']] * 3
    assert [r.address.round for r in actor.asked('answer_write')] == [0, 1] and not actor.asked('answer_revise')
    assert not actor.asked('caption_revise') and {image.codes.tobytes() for image in images_of(
        product.conversation.turns[0].answer)} == good
  assert decisions(make(content, accept='gated', enough=0.0)[0].turns[0].answers) == ['stop']
  assert decisions(make(content, accept='always', enough=4.0)[0].turns[0].answers) == ['stop']
  never = make(content, accept='gated', enough=5.5)[0].turns[0]
  assert decisions(never.answers) == ['again', 'again', 'last'] and len(never.images[0]) == 3


def test_best_of_goes_on_from_the_last_version_and_keeps_the_one_that_scores_highest():
  of = {'1': 1.0, '2': 5.0, '3': 3.0}  # by the round that a caption names; the first ones name none

  def rate(request):
    images = images_of(request.conversation.turns[-1].answer)
    return Rating((4.0,) * 4, tuple((4.0, *[of.get(image.caption[-1], 2.0)] * 3) for image in images))

  product, actor = make(answering(rate=rate, image_critique='more'), accept='best', rounds=Rounds(0, 0, 3))
  for rounds, image in zip(product.turns[0].images, images_of(product.conversation.turns[0].answer), strict=True):
    assert decisions(rounds) == ['revise', 'revise', 'revise', 'rollback']  # 1 was worse, and was revised all the same
    assert rounds[2].version.image == image and [sum(r.scores) for r in rounds] == [6.0, 3.0, 15.0, 9.0]
  captions = [text_of(r.prompt) for r in actor.asked('caption_revise')]
  assert 'large red cross top left on sand 1' in captions[1] and 'large red cross top left on sand 2' in captions[2]


def test_without_suggestions_a_revision_is_a_new_first_version():
  product, actor = make(suggestions=False, rounds=Rounds(1, 1, 1))
  assert not {r.address.role for r in actor.requests if not isinstance(r, Rate)} & {
      'question_revise', 'answer_revise', 'caption_revise'}
  for role in ('question_write', 'answer_write'):
    first, second = actor.asked(role)
    assert [first.address.round, second.address.round] == [0, 1]
  assert [text_of(r.prompt) for r in actor.asked('answer_write')] == [
      f'write answer : {text}' for text in [product.turns[0].questions[-1].version] * 2]
  drawn = [(text_of(r.prompt), r.address.round) for r in actor.asked('draw')]
  assert [k for _, k in drawn] == [0, 1, 0, 1] and drawn[0][0] == drawn[1][0]


def test_given_questions_are_taken_as_they_are():
  method, actor = fake.method(), fake.Actor()
  job = seir.Job('mine-0', 'topic', questions=('draw one cat .', 'now a dog .'))
  product = engine.advance(fake.crew(actor), {0: seir.converse(job, method)})[0]
  assert [text_of(turn.question) for turn in product.conversation.turns] == ['draw one cat .', 'now a dog .']
  assert [decisions(turn.questions) for turn in product.turns] == [['last'], ['last']]
  assert not [r for r in actor.requests if not isinstance(r, Rate) and r.address.role.startswith('question')]


def test_without_a_gate_the_last_version_wins():
  product, actor = make(answering(rate=falling, image_critique='more', answer_critique='more'), accept='always')
  assert images_of(product.conversation.turns[0].answer)[0].caption.endswith(' 2')
  assert not any(isinstance(request, Rate) for request in actor.requests)


def test_a_judge_that_fails_has_no_say_and_leaves_no_number():
  product, _ = make(answering(rate=None), accept='gated')
  assert decisions(product.turns[0].answers) == ['revise', 'stop'] and product.turns[0].answers[1].scores is None


def test_scores_of_the_finished_answers_are_kept_and_a_failed_judge_leaves_none():
  product, actor = make(turns=(2,))
  rated = engine.rate_finished(fake.crew(actor), {0: product})[0]
  assert [(score.turn, score.step) for score in rated.conversation.scores] == [
      (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
  assert len(actor.batches[-1]) == 2  # all together, not one after another
  failing = fake.crew(fake.Actor(answering(rate=None)))
  assert engine.rate_finished(failing, {0: product})[0].conversation.scores == ()


def test_no_picture_rejects_the_conversation_with_its_reason():
  """Defect 4: a failed picture or split goes on as an empty name or None."""
  product, actor = make(answering(draw=None), retries=2)
  assert product.conversation is None and product.reason == 'draw: no picture'
  assert [request.address.retry for request in actor.asked('draw')] == [0, 1, 2]
  assert not actor.asked('image_critique')


def test_a_failed_later_turn_is_dropped_and_a_failed_revision_keeps_the_version():
  later = answering(draw=lambda r: None if r.address.turn else fake.picture(r.address.number()))
  product, _ = make(later, turns=(2,))
  assert len(product.conversation.turns) == 1 and product.reason == 'draw: no picture'
  assert product.turns[1].failure == product.reason
  redraw = answering(draw=lambda r: None if r.address.round else fake.picture(r.address.number()))
  product, _ = make(redraw)
  assert decisions(product.turns[0].images[0]) == ['failed']
  assert images_of(product.conversation.turns[0].answer)[0].caption == fake.STEPS[0].caption


@pytest.mark.parametrize('bad', ['no marks at all', 'answer : only text', 'answer : a caption : ', 'caption : x answer : y', ''])
def test_an_answer_that_cannot_be_split_is_asked_for_again_and_then_rejected(bad):
  product, actor = make(answering(answer_write=bad), retries=1)
  assert product.conversation is None and product.reason.startswith('answer_write: ')
  assert len(actor.asked('answer_write')) == 2 and not actor.asked('draw')
  good = fake.usual
  product, actor = make(answering(answer_write=lambda r: good(r) if r.address.retry else bad))
  assert product.reason == ''
  assert [call.problem == '' for call in product.turns[0].calls if call.address.role == 'answer_write'] == [False, True]


def test_a_cut_completion_is_not_used():
  product, _ = make(answering(question_write=Reply('half a question', 'cut at 8 positions')))
  assert product.conversation is None and product.reason == 'question_write: cut at 8 positions'


def test_word_limits_are_checked():
  """Defect 6: limits are only asked for."""
  product, _ = make(question_words=5)
  assert product.reason == 'question_write: question has too many words; at most 5'
  product, _ = make(caption_words=7)  # the first captions have 7 words, the revised one 8
  assert decisions(product.turns[0].images[0]) == ['failed']
  assert images_of(product.conversation.turns[0].answer)[0].caption == fake.STEPS[0].caption
  product, _ = make(caption_words=6)
  assert product.reason == 'answer_write: caption has too many words; at most 6'
  product, _ = make(max_steps=1)
  assert product.reason == 'answer_write: answer has too many steps; at most 1'


def test_every_draw_has_an_address_of_its_own_that_never_changes():
  """Defect 5: seeds are random and not stored."""
  requests = []
  for index in range(20):
    product, actor = make(answering(image_critique='more'), index=index, turns=(1, 2))
    requests += actor.requests
    calls = [call.address for turn in product.turns for call in turn.calls]
    assert calls == [request.address for request in actor.requests]
  addresses = [request.address for request in requests]
  assert len(set(addresses)) == len(addresses)
  assert len({address.number() for address in addresses}) == len(addresses)
  assert Address('seir-0-00000000', 0, 'draw', 1, 2, 0).number() == 1783805925


def test_topic_is_drawn_once_and_template_for_each_turn():
  method = fake.method(turns=(1, 2, 3), later_templates=('now * .', 'next * .'))
  jobs = [seir.plan(method, index) for index in range(200)]
  assert jobs == [seir.plan(method, index) for index in range(200)]
  assert len({job.id for job in jobs}) == 200
  assert {job.topic for job in jobs} == set(method.topics)
  assert {len(job.templates) for job in jobs} == {1, 2, 3}
  assert {job.templates[0] for job in jobs} == set(method.templates)
  assert len({job.templates[1:] for job in jobs if len(job.templates) == 3}) == 4


def test_later_turns_see_the_turn_before():
  _, actor = make(turns=(2,))
  written = actor.asked('question_write')
  assert 'after :' not in text_of(written[0].prompt)
  prompt = text_of(written[1].prompt)
  assert fake.QUESTION in prompt and 'shown : large red cross top left on sand 1' in prompt
  assert text_of(actor.asked('answer_write')[1].prompt).count(fake.QUESTION) == 2


def test_later_turns_see_the_last_picture_where_the_method_says_so():
  for pictures in (False, True):
    product, actor = make(turns=(2,), pictures=pictures)
    shown = images_of(product.conversation.turns[0].answer)[-1]
    for role in ('question_write', 'question_critique', 'answer_write', 'answer_critique'):
      prompt = next(r for r in actor.asked(role) if r.address.turn == 1).prompt
      assert [image.codes.tolist() for image in images_of(prompt)] == [shown.codes.tolist()] * pictures
      assert shown.caption in text_of(prompt)


def test_the_unrefined_twin_shares_its_beginning_and_is_written_from_its_own_question():
  method, actor = fake.method(accept='gated'), fake.Actor()
  plain = method.unrefined()
  jobs = [seir.plan(m, 3) for m in (method, plain)]
  assert jobs[0] == jobs[1]
  made = engine.advance(fake.crew(actor), {i: seir.converse(jobs[i], m) for i, m in enumerate((method, plain))})
  twin = made[1].conversation.turns[0]
  assert text_of(twin.question).endswith(' 0 0') and made[1].turns[0].answers[0].decision == 'last'
  assert [image.caption for image in images_of(twin.answer)] == [step.caption for step in fake.STEPS]
  assert len(actor.asked('question_write')) == 1  # shared
  # The question was revised, so the first answer to the first question is a request of its own.
  written = [text_of(request.prompt) for request in actor.asked('answer_write')]
  assert len(written) == 2 and all(f'{fake.QUESTION} {jobs[0].id} 0 {k}' in prompt for k, prompt in enumerate(written))


def test_counts_add_up():
  product, _ = make(answering(rate=falling, image_critique='more', answer_critique='none'), accept='gated')
  counts = seir.counts_of(product)
  assert counts['question_stop_1'] == (0.0, 1) and counts['question_stop_2'] == (1.0, 1)
  assert counts['answer_stop_1'] == (1.0, 1) and 'answer_accept' not in counts
  assert counts['image_accept'] == (0.0, 4)
  assert counts['image_icc_0'] == (8.0, 2) and counts['image_icc_2'] == (4.0, 2)
  assert counts['retry_draw'] == (0.0, 6)


def test_seir_never_imports_the_ground_truth():
  """DESIGN 4: scorer and gold answers never reward, filter or select anything."""
  folder = pathlib.Path(intersyn_jax.synthesis.__file__).parent
  for path in folder.glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [node.module or ''] if isinstance(node, ast.ImportFrom) else []
      names += [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
      assert not any('storyworld' in name for name in names), path


def test_products_are_plain_values():
  product, _ = make()
  again, _ = make()
  assert product.conversation == again.conversation
  assert dataclasses.asdict(product.turns[0].calls[0]) == dataclasses.asdict(again.turns[0].calls[0])
  assert isinstance(product.conversation.turns[0].question[0], Text)
