"""The worked examples of docs/extending.md: each file is what the page shows, and does what the page says."""

import dataclasses
import json
import pathlib
import re
import shlex
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from intersyn_jax import __main__ as cli
from intersyn_jax.data import images, manifest, shards
from intersyn_jax.data.roles import STOP
from intersyn_jax.decoding.config import DecodeConfig
from intersyn_jax.decoding.decoder import Decoder
from intersyn_jax.errors import UserError
from intersyn_jax.grpo import advantages
from intersyn_jax.grpo.advantages import AdvantageConfig
from intersyn_jax.grpo.loss import LossConfig
from intersyn_jax.grpo.rewards import HostReward, hybrid
from intersyn_jax.grpo.trainer import GRPOConfig, Trainer
from intersyn_jax.interleave import grammar, layout
from intersyn_jax.interleave.types import Image, Text, Turn, images_of
from intersyn_jax.judge.model import JudgeScores
from intersyn_jax.models.families import weights
from intersyn_jax.models.trunk import TrunkConfig
from intersyn_jax.models.unified import ModelConfig, define
from intersyn_jax.stages import converted, grpo, imports, settings, synthesize
from intersyn_jax.stages.common import plain
from intersyn_jax.stages.notebook import Generator
from intersyn_jax.synthesis import engine, seir
from intersyn_jax.synthesis.interfaces import Address, Crew, Draw, Look, OwnCritic
from intersyn_jax.training.optimizer import OptimizerConfig, make_optimizer
from tests import small_model
from tests.families import checkpoints, tiny_tokenizers
from tests.synthesis import fake

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = 'tests/extending'
PAGE = (ROOT / 'docs' / 'extending.md').read_text()
STEPS = 3


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  """Paths in a configuration count from the working folder."""
  monkeypatch.chdir(ROOT)


def pixels(codes):
  """A stand-in image tokenizer: the codes are grey values of a 2x2 picture."""
  return np.repeat(np.asarray(codes, np.uint8).reshape(-1, 2, 2, 1), 3, axis=-1)


def parts(**sections):
  """What constructors are given, as far as the examples read it."""
  config = dict(judge=dict(max_steps=STEPS)) | sections
  return types.SimpleNamespace(config=ml_collections.ConfigDict(config), decode=pixels, layout=small_model.plain())


# The page.


@pytest.mark.parametrize('file', sorted(path.name for path in (ROOT / FOLDER).glob('*.py') if not path.name.startswith('test_')))
def test_the_page_shows_the_file(file):
  source = (ROOT / FOLDER / file).read_text()
  assert f'```python\n{source}```' in PAGE, f'docs/extending.md does not quote {FOLDER}/{file} as it is'
  assert f'{FOLDER}/{file}:' in PAGE, 'no command on the page names it'


def test_the_commands_of_the_page_name_what_there_is():
  commands = [shlex.split(line) for line in re.findall(r'^ +python -m intersyn_jax (.+)$', PAGE, re.MULTILINE)]
  by_config = {tuple(flag for flag in flags if flag.startswith('--config')): flags for flags in commands}
  assert len(by_config) == 5
  for flags in by_config.values():
    imports.check_all(settings.parse(flags).config)


# An image head and rewards, in one iteration of GRPO.


@pytest.fixture(scope='module')
def quick():
  """Compiles faster: these programs run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def trained(quick):
  """An iteration with the head and both rewards of the page, up to its update: metrics, what the host was shown, what the
  update was given, and the model."""
  layout_ = small_model.plain()
  block = layout_.block
  head = imports.resolve(str(ROOT / FOLDER / 'cosine_head.py:CosineHead'), 'model.image_head')
  config = ModelConfig(TrunkConfig(width=16, layers=1, heads=2, kv_heads=1, head_width=8, mlp_width=32),
                       layout_.tokenizer.size, block.places, block.depth, block.codebook, image_head=head)
  definition, mesh = define(config), small_model.one_device()
  params = definition.init(jax.random.key(0), mesh)
  # Pictures and steps are begun often, so that there is something to reward.
  params['image_head']['head'] = jnp.zeros(0)  # which `eager` would sharpen
  params = small_model.eager(params, layout_)
  del params['image_head']['head']
  params['text_head'] = params['text_head'].at[0, layout_.special('<think>')].set(2.5)
  named = [str(ROOT / FOLDER / name) for name in ('terse.py:terse', 'novelty.py:Novelty')]
  own = grpo.own_rewards(parts(grpo=dict(rewards=tuple(named))))
  seen = []
  score = own['Novelty'].score
  own['Novelty'].score = lambda answers: seen.append(answers) or score(answers)
  judge = lambda params, tokens: JudgeScores(jnp.zeros((len(tokens.text), 4)), jnp.zeros((len(tokens.text), STEPS, 4)), None,
                                             jnp.ones(len(tokens.text), bool))
  optimizer = make_optimizer(OptimizerConfig(), 2)
  weights = {'textual': 1.0, 'visual': 1.0, 'format': 0.0, 'own': 1.0}
  trainer = Trainer(Decoder(definition, layout_, mesh, DecodeConfig(max_positions=24, bucket=8)), judge, {}, optimizer, params,
                    GRPOConfig(16, max_steps=STEPS), AdvantageConfig(8, weights), LossConfig(kl=0.0), 0, own)
  prompts = layout.stack([layout.prompt(small_model.question(text), layout_) for text in ('a red', 'move the blue')], 16,
                         left=True)
  given = []
  trainer._update = lambda state, batch, key: given.append(batch) or (state, {'skipped': 0, 'skipped_in_a_row': 0})
  trainer.memory['drawn'] = 1
  _, metrics = trainer.iteration({'params': params}, lambda number: (prompts, np.array([1, 2], np.int32)))
  return metrics | trainer.times.take(), seen, given, (definition, params, layout_)


def test_the_head_writes_and_scores(trained):
  metrics, _, (batch,), (definition, params, _) = trained
  assert metrics['images'] > 0 and params['image_head'].keys() == {'hidden_kernel', 'scale'}
  chosen = np.asarray(batch['tokens'].loss) > 0
  assert (chosen & (np.asarray(batch['tokens'].modality) == layout.CODES)).sum() > 8
  np.testing.assert_allclose(np.asarray(batch['old'])[chosen], np.asarray(batch['reference'])[chosen], atol=1e-4)
  # A hidden state that the kernel turns into a code's embedding makes that code the likeliest, at a logit of `scale`.
  table = np.asarray(params['backbone']['image_embedding']['code_embedding'])
  hidden = 10 * table @ np.linalg.inv(params['image_head']['hidden_kernel'])
  logits = definition.bind(params).code_logits(jnp.asarray(hidden), jnp.zeros((len(table), 1), int))
  assert logits.shape == (len(table), 1, small_model.CODEBOOK)
  np.testing.assert_array_equal(np.argmax(logits[:, 0], axis=-1), np.arange(len(table)))
  np.testing.assert_allclose(np.max(logits, axis=-1), 10, rtol=1e-3)


def test_rewards_of_ones_own_reach_the_metrics_and_the_host_is_timed(trained):
  metrics, (answers,), (batch,), _ = trained
  assert [c.id for c in answers] == [str(number) for number in range(16, 32)]
  assert [c.turns[-1].question for c in answers] == [(Text('a red'),)] * 8 + [(Text('move the blue'),)] * 8
  pictures = [image for c in answers for image in images_of(c.turns[-1].answer)]
  assert len(pictures) > 1 and all(image.codes.shape == (4, 1) for image in pictures)
  assert min(metrics['reward.own.terse'], metrics['reward.own.Novelty']) > 0
  np.testing.assert_allclose(metrics['reward'], metrics['reward.own.terse'] + metrics['reward.own.Novelty'], rtol=1e-5)
  assert np.any(batch['advantage'] > 0) and np.any(batch['advantage'] < 0)
  assert metrics['seconds.host_transfer'] > 0 and metrics['seconds.host_reward'] > 0
  assert metrics['seconds.reward'] >= metrics['seconds.host_transfer'] + metrics['seconds.host_reward']


def test_terse_counts_what_the_policy_said():
  reward = imports.construct(f'{FOLDER}/terse.py:terse', 'grpo.rewards', 'rewards', parts())
  layout_ = small_model.plain()
  answer = (Text('a'), small_model.image(layout_), Text('red circle ' * 30), small_model.image(layout_))
  question = small_model.question('a very long question ' * 9)
  told = dataclasses.replace(question, turns=(Turn(question.turns[0].question, answer),))
  tokens = jax.tree.map(lambda a: a[None], layout.tokenise(told, layout_))
  np.testing.assert_allclose(jax.jit(reward)(tokens), [[1.0, 0.0, 1.0]])


def test_novelty_compares_pictures():
  reward = imports.construct(f'{FOLDER}/novelty.py:Novelty', 'grpo.rewards', 'rewards', parts())
  image = lambda *codes: Image(codes=np.array(codes, np.int32)[:, None])
  answers = [(image(1, 2, 3, 4), Text('x'), image(1, 2, 3, 4), image(1, 2, 3, 9)), ()]
  told = [dataclasses.replace(small_model.question('q'), turns=(Turn((Text('q'),), answer),)) for answer in answers]
  np.testing.assert_allclose(reward.score(told), [[1, 0, 1], [0, 0, 0]])


# How rewards of one's own are paid.


def test_own_rewards_are_paid_where_the_step_ends_and_a_missing_step_is_worth_nothing():
  parse = grammar.Parse(None, jnp.array([[2, -1], [2, 5]]), jnp.array([[4, -1], [4, -1]]), jnp.array([1, 2]), jnp.ones(2, bool))
  weights = {'textual': 0.0, 'visual': 0.0, 'format': 0.0, 'own': 2.0}

  @jax.jit
  def pay(own):
    judged = jnp.zeros((2, 2, 4)), jnp.zeros((2, 4)), jnp.ones(2, bool)
    got = hybrid(*judged, parse, jnp.array([2, 2]), {'own': own})
    step, whole = (AdvantageConfig(2, weights, process=process, advantage_scale='none') for process in (True, False))
    return (got.own['own'], got.valid, advantages.process(got, parse, jnp.array([6, 7]), 8, step), advantages.outcome(got, whole))

  own, _, process, outcome = pay(jnp.array([[1.0, 9.0], [0.0, 0.5]]))
  np.testing.assert_array_equal(own, [[1, 0], [0, 0.5]])
  # The mean over the steps of the group is 3/8, the weight 2. The first answer: 5/4 until 4 (`</vis>`), -3/4 until its end, 6;
  # the second: -3/4 until 4, 1/4 until 5, where its second step closed its text.
  np.testing.assert_allclose(process, [[0.5] * 5 + [-0.75] * 2 + [0], [-0.5] * 5 + [0.25] + [0] * 2], atol=1e-6)
  np.testing.assert_allclose(outcome, [0.25, -0.25], atol=1e-6)
  # A NaN is no score, unless the step it is given for was never written.
  own, valid, process, _ = pay(jnp.array([[0.5, np.nan], [0.0, np.nan]]))
  np.testing.assert_array_equal(valid, [True, False])
  assert np.isfinite(own).all() and np.isfinite(process).all()


class Wrong(HostReward):
  """A host reward that gives what it was made with."""

  def __init__(self, value):
    self.value = value

  def score(self, answers):
    return self.value


def test_rewards_of_the_wrong_kind_are_named(trained):
  *_, (definition, params, layout_) = trained
  make = lambda own: Trainer(Decoder(definition, layout_, small_model.one_device(), DecodeConfig(max_positions=8)), None, {},
                             make_optimizer(OptimizerConfig(), 1), params, GRPOConfig(16, max_steps=STEPS),
                             AdvantageConfig(2, {}), LossConfig(), 0, {'mine': own})
  prompts = layout.stack([layout.prompt(small_model.question('a red'), layout_)], 16, left=True)
  tokens = jax.tree.map(jnp.asarray, prompts)
  for reward, words in ((lambda tokens: tokens.loss, r'float32\[1, 16\]'), (lambda tokens: None, 'NoneType'),
                        (lambda tokens: np.asarray(tokens.loss).mean(), 'cannot be compiled .*HostReward'),
                        (lambda tokens: jnp.ones((1, STEPS)) if tokens.loss.sum() > 0 else 0, 'cannot be compiled')):
    with pytest.raises(UserError, match=f'config.grpo.rewards: mine .*{words}') as error:
      jax.jit(make(reward)._own)(tokens)
    assert '\n' not in str(error.value)
  completions = types.SimpleNamespace(tokens=prompts)
  for value, words in (([[0.0] * STEPS], 'gave list'), (np.zeros((1, 2)), r'float64\[1, 2\]'),
                       (np.array([['a'] * STEPS]), '<U1')):
    with pytest.raises(UserError, match=f'config.grpo.rewards: mine .*{words}'):
      make(Wrong(value))._host(prompts, completions, np.arange(1))


def test_constructors_of_the_wrong_kind_are_named():
  for value, words in (((lambda parts: 3,), 'constructs a int'), ((Wrong, Wrong), 'names Wrong twice'),
                       ((f'{FOLDER}/terse.py:LIMIT',), 'no constructor of rewards')):
    with pytest.raises(UserError, match=f'config.grpo.rewards.*{words}'):
      grpo.own_rewards(parts(grpo=dict(rewards=value)))
  with pytest.raises(UserError, match=r'config.synthesize.critic: .*constructs a Wrong; it must be an OwnCritic'):
    synthesize.own_critic(parts(synthesize=dict(critic=Wrong)))


# A critic.


def test_the_critic_sends_blank_pictures_back():
  critic = synthesize.own_critic(parts(synthesize=dict(critic=f'{FOLDER}/blank_critic.py:BlankCritic')))
  blank, drawn = (Image(codes=np.array(codes, np.int32)[:, None]) for codes in ([7, 7, 7, 7], [7, 7, 90, 7]))
  draw = lambda request: blank if request.address.round == 0 else drawn
  answer = lambda request: draw(request) if isinstance(request, Draw) else fake.usual(request)
  actor = fake.Actor(answer)
  method = fake.method(turns=(1,))
  made = engine.advance(Crew(actor, critic, actor, actor), {i: seir.converse(seir.plan(method, i), method) for i in range(3)})
  for product in made.values():
    for rounds in product.turns[0].images:
      assert [entry.decision for entry in rounds] == ['revise', 'stop']
      assert rounds[0].critique.suggestion == 'nothing can be seen , name the shapes .' and rounds[1].critique.stop
  assert not actor.asked('image_critique')


class Mute(OwnCritic):
  """A critic that gives what it was made with."""

  def __init__(self, said):
    self.said = said

  def critique(self, looks):
    return self.said


@pytest.mark.parametrize('said, words', [
    (None, 'NoneType'), ('none', 'str'), ([STOP], '1 texts'), ([STOP, 3], 'int')])
def test_a_critic_that_gives_something_else_is_named(said, words):
  critic = Mute(said)
  tickets = [critic.prepare(Look(Address('c', 0, 'image_critique'), ())) for _ in range(2)]
  with pytest.raises(UserError, match=f'config.synthesize.critic: Mute was asked about 2 pictures and gave {words}'):
    critic.run('own_critic', 0, tickets)


# A data source.


def stories(folder):
  """Three Markdown files: two stories, and one whose picture is missing."""
  folder.mkdir()
  (folder / 'red.png').write_bytes(images.png(np.full((20, 20, 3), (200, 30, 30), np.uint8)))
  (folder / 'a.md').write_text('How do I paint a wall?\n\nMix the paint.\n\n![a red pot](red.png)\n\n'
                               'Now paint.\n\n![a red wall](red.png)\n')
  (folder / 'b.md').write_text('What is red?\n\nThis is.\n\n![red](red.png)\n')
  (folder / 'c.md').write_text('What is blue?\n\n![blue](blue.png)\n')
  return folder


def data(folder, workdir, *flags):
  return cli.main(['data', '--config=configs/opening.py:smoke', f'--workdir={workdir}',
                   f'--config.data.source={FOLDER}/markdown.py:Markdown', f'--config.data.path={folder}', *flags])


def test_the_data_source_fills_shards(tmp_path):
  folder = stories(tmp_path / 'stories')
  assert data(folder, tmp_path / 'work') == 0
  assert data(folder, tmp_path / 'work') == 0, 'it is not done again'
  found = shards.open_split(tmp_path / 'work' / 'data', 'interleaved')
  assert [c.id for c in found] == ['a', 'b'] and found[0].turns[0].question == (Text('How do I paint a wall?'),)
  kinds = [s.text if isinstance(s, Text) else s.caption for s in found[0].turns[0].answer]
  assert kinds == ['Mix the paint.', 'a red pot', 'Now paint.', 'a red wall']
  assert images_of(found[0].turns[0].answer)[0].pil().size == (64, 64)
  rejected = manifest.load(tmp_path / 'work' / 'data').splits['interleaved'].rejected
  assert [row.where for row in rejected] == ['c.md'] and 'blue.png' in rejected[0].reason


SOURCE = """
from intersyn_jax.data.builders import ConversationBuilder
from intersyn_jax.interleave.types import Conversation, Turn

class Source(ConversationBuilder, skip_registration=True):
  def __init__(self, *, pixels, **kwargs):
    super().__init__(**kwargs)
  def sizes(self):
    return {'train': None}
  def settings(self, split):
    return {}
  def conversations(self, split):
    return ITEMS

class Greedy(Source, skip_registration=True):
  def __init__(self, *, sugar, **kwargs):
    super().__init__(**kwargs)

def function(**fields):
  return None
"""


@pytest.mark.parametrize('items, attribute, words', [
    ('None', 'Source', 'Source.conversations gave NoneType for split train'),
    ('[{"id": 3}]', 'Source', 'gave dict as record 0 of split train'),
    ('[Conversation("a", "", (Turn(("text",)),))]', 'Source', 'gave str as a segment of record 0'),
    ('[]', 'Source', 'no row of the source could be used'),
    ('[]', 'Sauce', 'has no Sauce; did you mean Source?'),
    ('[]', 'function', 'name a class of ConversationBuilder'),
    ('[]', 'Greedy', 'data.sugar is not set; Greedy needs sugar'),
    ('[', 'Source', "line 13: '[' was never closed"),
    ('unknown + 1', 'Source', 'NameError'),
])
def test_a_mistaken_data_source_is_one_line_and_exit_code_2(tmp_path, capsys, items, attribute, words):
  (tmp_path / 'source.py').write_text(SOURCE.replace('ITEMS', items) + (items if items.startswith('unknown') else ''))
  code = data('', tmp_path / 'work', f'--config.data.source={tmp_path / "source.py"}:{attribute}')
  *_, line = capsys.readouterr().err.strip().splitlines()
  assert code == 2 and line.startswith('error: ') and words in line


# A family.


def checkpoint(root, family):
  """A downloaded folder of the family's tiny size with random weights; gives its tensors."""
  root.mkdir()
  (root / 'config.json').write_text(json.dumps(family.sizes['tiny']))
  text = family.model(family.sizes['tiny']).vocabulary
  (root / 'tokenizer.model').write_bytes(tiny_tokenizers.sentencepiece(size=text - 2))
  (root / 'added_tokens.json').write_text(json.dumps({'<image>': text - 2, '</image>': text - 1}))
  drawn = checkpoints.drawn(converted.Checkpoint(family, root, checkpoints.ROOM), 'F32', 0)
  tensors = {name: array for name, array in drawn.items() if 'rotary' not in name and array.dtype == np.float32}
  weights.write_tensors(root, {name: weights.Spec('F32', a.shape) for name, a in tensors.items()}, iter(tensors.items()))
  return tensors


def test_the_family_comes_in_and_out(tmp_path, capsys):
  name = f'{FOLDER}/quill.py:FAMILY'
  tensors = checkpoint(tmp_path / 'quill', imports.resolve(name, 'family'))
  flags = ['--config=configs/liquid.py:tiny', f'--workdir={tmp_path / "work"}', f'--config.family={name}']
  assert cli.main(['convert', *flags, f'--from={tmp_path / "quill"}']) == 0
  made = converted.Converted(tmp_path / 'work', settings.parse(['convert', *flags]).config)
  assert made.family.name == 'quill' and made.layout.block.places == 16 and len({*made.layout.tags}) == 4
  said = dataclasses.replace(small_model.question('a red circle'), turns=(Turn((Text('a red circle'),), (Text('the circle'),)),))
  assert layout.turns_of(layout.tokenise(said, made.layout), made.layout) == said.turns
  assert cli.main(['export', *flags, f'--out={tmp_path / "again"}']) == 0
  again = weights.open_tensors(tmp_path / 'again', ('',), ())
  assert again.keys() == tensors.keys()
  assert [n for n, a in tensors.items() if weights.read(again[n]).tobytes() != a.tobytes()] == []
  capsys.readouterr()
  assert cli.main(['convert', *flags[:2], f'--config.family={FOLDER}/terse.py:LIMIT', f'--from={tmp_path / "quill"}']) == 2
  assert 'it must be a Family' in capsys.readouterr().err


# Names.


def test_a_name_is_a_module_a_file_or_the_thing_itself(tmp_path, monkeypatch):
  head = imports.resolve(f'{FOLDER}/cosine_head.py:CosineHead', 'model.image_head')
  assert head is imports.resolve(str(ROOT / FOLDER / 'cosine_head.py:CosineHead'), 'model.image_head')
  assert imports.resolve('intersyn_jax.models.image_heads:FlatHead', 'model.image_head').__name__ == 'FlatHead'
  assert imports.resolve(head, 'model.image_head') is head and imports.resolve('flat', 'model.image_head') == 'flat'
  # A file may import what lies beside it, and a dataclass finds its module.
  (tmp_path / 'beside.py').write_text('VALUE = 3\n')
  (tmp_path / 'mine.py').write_text('from __future__ import annotations\nimport dataclasses\nfrom beside import VALUE\n'
                                    '@dataclasses.dataclass\nclass Mine:\n  value: int = VALUE\n')
  monkeypatch.chdir(tmp_path)
  assert imports.construct('mine.py:Mine', 'grpo.rewards', 'rewards').value == 3


def test_a_configuration_may_hold_the_thing_itself():
  config = settings.load_config('configs/storyworld.py:smoke')
  with config.ignore_type():
    config.model.image_head = Wrong
  config.grpo.rewards = (Wrong,)
  assert plain(config)['model']['image_head'] == f'{__name__}:Wrong' and plain(config)['grpo']['rewards'] == [f'{__name__}:Wrong']


@pytest.mark.parametrize('flag, words', [
    ('grpo.rewards=nowhere.py:x', 'config.grpo.rewards is nowhere.py:x, which cannot be imported (there is no file nowhere.py'),
    (f'grpo.rewards={FOLDER}/terse.py:terse,{FOLDER}/terse.py:long', f'{FOLDER}/terse.py has no long; did you mean terse?'),
    ('synthesize.critic=no_such_package.critics:Mine', "No module named 'no_such_package'"),
    ('model.image_head=intersyn_jax.models.image_heads:FlatHed', 'did you mean FlatHead?'),
    ('data.source=.py:', 'config.data.source is .py:'),
])
def test_a_name_that_leads_nowhere_is_told_before_hours_of_work(tmp_path, capsys, flag, words):
  assert cli.main(['run', '--config=configs/storyworld.py:smoke', f'--workdir={tmp_path / "w"}', f'--config.{flag}']) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert words in line and not (tmp_path / 'w').exists()


def test_a_work_folder_names_no_code_outside_the_package(tmp_path):
  evil = tmp_path / 'evil.py'
  evil.write_text(f'import pathlib\npathlib.Path({str(tmp_path / "ran")!r}).touch()\nclass Head: pass\n')
  foreign = [f'{evil}:Head', 'os:system', 'intersyn_jax.x/../../evil.py:Head', 'intersyn_jax.evil.py:Head',
             'intersyn_jax_evil:Head', 'intersyn_jax.stages.imports:pathlib.os', 'intersyn_jax.a:b:c']
  for field in imports.FIELDS:
    *section, name = field.split('.')
    for value in foreign:
      inner = {name: [value] if name == 'rewards' else value}
      config = imports.read_back({section[0]: inner} if section else inner)
      with pytest.raises(UserError, match=f'config.{field} is .* in the config.json of a work folder'):
        imports.check_all(ml_collections.ConfigDict(config))
  for value in foreign:  # and so it is met by who opens the folder
    (tmp_path / 'config.json').write_text(json.dumps({'model': {'image_head': value}}))
    with pytest.raises(UserError, match='image_head is .* build Parts from your own configuration'):
      Generator.from_workdir(tmp_path)
  assert not (tmp_path / 'ran').exists()
  ours = imports.read_back({'model': {'image_head': 'intersyn_jax.models.image_heads:FlatHead', 'dtype': 'bfloat16'}})
  assert imports.resolve(ours['model']['image_head'], 'model.image_head').__name__ == 'FlatHead'
  assert jnp.zeros(1, ours['model']['dtype']).dtype == jnp.bfloat16
