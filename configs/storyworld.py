"""Storyworld: the whole pipeline of both papers on a procedural world that runs, and can be checked, anywhere.

    python -m intersyn_jax run --config=configs/storyworld.py:tiny --workdir=runs/tiny

Sizes: `smoke` (all stages in about 90 s on 2 CPU cores, no claim of quality), `tiny` (CPU, the main job), `small`
(one GPU, about ten times larger, 64-pixel pictures with jitter).
"""

from ml_collections import ConfigDict

from intersyn_jax.errors import UserError


def get_config(size: str = 'tiny') -> ConfigDict:
  if size not in _SIZES:
    raise UserError(f'configs/storyworld.py:{size}: no such size; use {", ".join(_SIZES)}')
  config = _tiny()
  config.update(_SIZES[size]())
  return config


def _optimizer(**fields) -> dict:
  """Muon for the trunk's matrices, Adam for the rest; the number of steps comes from the stage."""
  return dict(name='muon', learning_rate=0.02, adam_learning_rate=3e-3, schedule='linear', warmup=20, floor=0.05,
              clip=1.0, weight_decay=0.0, b1=0.9, b2=0.98, momentum=0.95, frozen=(),
              precision='full') | fields


# What trains of a policy: everything, with the logits of all positions at once (docs/training.md).
_WHOLE = dict(lora_rank=0, lora_alpha=16.0, quantise='', log_prob_chunk=0)

# Of a model on an OpenAI-compatible server; without a url it is not asked (docs/endpoints.md).
_ENDPOINT = dict(url='', model='', key_variable='OPENAI_API_KEY', timeout=60.0, retries=3, requests_per_minute=0.0,
                 max_parallel=4, max_response_bytes=1 << 20, input_price=0.0, output_price=0.0)


def _tiny() -> ConfigDict:
  c = ConfigDict()
  c.name = 'storyworld'
  c.seed = 0  # of everything that is trained or drawn; the data set and its tokenizers have `data.seed`
  c.mesh = dict(replica=1, fsdp=-1, tensor=1)
  c.profile_steps = ''  # FIRST:LAST of every training loop, e.g. 10:12, for a trace in WORKDIR/<stage>/profile

  # Pictures: a 4x4 grid of cells. Counts are conversations; `interleaved` is the N of DESIGN 4.
  c.data = ConfigDict(dict(
      source='storyworld', seed=0, path='', images='', pixels=32, jitter=0, objects=2, steps=(1, 2, 2, 3), turns=(1, 1, 1, 2),
      counts=dict(interleaved=400, understanding=4000, text_to_image=6000, roles=60000, roles_interleaved=5000,
                  gold=1500, questions=4000, validation=256, test=1200),
      shard_records=2000, fit='crop', workers=0, beam=''))

  c.text = ConfigDict(dict(size=768))
  c.image = ConfigDict(dict(
      downsample=8, channels=128, blocks=1, kernel=1, codebook=512, depth=1, code_dim=32,
      pictures=12000, damaged=0.15, batch=64, autoencoder=250, steps=900, learning_rate=2e-3))

  c.model = ConfigDict(dict(
      width=96, layers=3, heads=3, kv_heads=3, head_width=32, mlp_width=384, rope_base=10_000.0, remat='none',
      dtype='float32', mix=4, image_head='flat'))

  c.decode = ConfigDict(dict(
      rows=128, max_positions=128, max_images=3, min_steps=0, max_steps=0, stop=('</s>',), stop_after_images=False, chunk=0,
      text_temperature=1.0, text_top_k=0, text_top_p=1.0, text_repetition=1.0,
      image_temperature=1.0, image_top_k=0, image_top_p=1.0, guidance=1.0, image_guidance=0.0))

  # Supervised stages. `mix` weighs documents; `row_length` is T of a packed row.
  c.warmup = ConfigDict(dict(
      mix=dict(interleaved=0.25, understanding=0.2, text_to_image=0.55), steps=800, rows=12, row_length=192,
      micro_batches=1, null_prompt_rate=0.1, question_weight=0.0, **_WHOLE, optimizer=_optimizer(),
      checkpoint_every=250, log_every=10,
      # The control `warmup_long`: warm-up gone on for as long as `finetune` and `grpo` take together.
      long_steps=1900))
  c.writer = ConfigDict(dict(
      mix=dict(roles=0.8, roles_interleaved=0.1, text_to_image=0.1), steps=2400, rows=12, row_length=256,
      micro_batches=1, null_prompt_rate=0.1, question_weight=0.3, **_WHOLE, optimizer=_optimizer(),
      checkpoint_every=250, log_every=10))

  # Views of one answer are documents of their own; `widths` is what they may take when a whole row is judged.
  # `source` names answers that people have scored (docs/data.md); '' are answers of Storyworld, of which the share
  # `held_out` of the topics is for the test, with votes of annotators who are made up around the scorer's labels.
  c.judge = ConfigDict(dict(
      source='', images='', held_out_generators=(), answers=54000, test_answers=1500, held_out=0.15, aside=0.05, annotators=3,
      disagreement=0.3, retold=2, layers=1, reader=1, mode='full', lora_rank=8, lora_alpha=16.0, init='warmup', max_steps=3,
      widths=dict(tcc=176, icc=256, its=304), steps=2600, rows=36, row_length=200, dimension_weights=(1.2, 1.4, 0.3, 1.8),
      balance=0.15, mark_weight=1.5, expected_weight=0.3, align=dict(steps=8000, rows=24, learning_rate=0.006),
      optimizer=_optimizer(learning_rate=0.01, adam_learning_rate=2e-3),
      baselines=('mean', 'likelihood', 'clip'), clip=dict(width=96, layers=2, steps=200),
      challenges=80, bootstrap=200, checkpoint_every=100, log_every=10))

  c.synthesize = ConfigDict(dict(
      conversations=1000, window=500, in_flight=192, unrefined=True, rounds=dict(question=2, answer=2, image=2), turns=(1, 2),
      text_temperature=1.0, text_top_p=0.9, image_temperature=1.0, accept='gated', enough=4.5,
      history_pictures=False, rate_finished=False,
      word_limits=dict(question=50, caption=65), retries=2, topics='', templates='', duplicate_similarity=0.9,
      rows=32, rooms=dict(prompts=(48, 96, 224), short=56, long=144, critic=24, judged=(160,)), shard_records=500,
      critic='',  # '': the writer; or the import path of your own (docs/extending.md)
      # Models on servers instead, for any of the three jobs.
      endpoints=dict(language=dict(_ENDPOINT, temperature=0.7, max_tokens=1024, smallest_side=224),
                     critic=dict(_ENDPOINT, temperature=0.7, max_tokens=1024, smallest_side=224),
                     images=dict(_ENDPOINT, size='1024x1024', max_response_bytes=32 << 20, picture_price=0.0))))

  c.finetune = ConfigDict(dict(
      mix=dict(synthesized=0.6, understanding=0.15, text_to_image=0.25), steps=450, rows=12, row_length=256,
      micro_batches=1, null_prompt_rate=0.1, question_weight=0.0, **_WHOLE,
      optimizer=_optimizer(learning_rate=0.01, adam_learning_rate=1.5e-3), checkpoint_every=250, log_every=10))

  # The defaults are the paper's where it says; what each alternative means stands in docs/grpo.md.
  c.grpo = ConfigDict(dict(
      init='finetune', questions='questions', steps=140, prompts=8, group_size=8, max_prompt=48, max_positions=112,
      # How answers are drawn, and whether ratios are of what they were drawn from (`drawn`) or of the bare heads (`plain`).
      sampling=dict(text_temperature=1.0, text_top_k=0, text_top_p=1.0, image_temperature=1.0, image_top_k=0, image_top_p=1.0,
                    guidance=1.0), scored='plain',
      # Weights of r_t, r_v, r_f, and of each reward of your own that `rewards` names (docs/extending.md).
      reward=dict(textual=1.0, visual=1.0, format=1.0, own=1.0), rewards=(), process=True, process_normalise='group',
      reward_normalise='each', advantage_scale='group', filter_groups=False, refills=0,
      clip_low=0.2, clip_high=0.2, dual_clip=0.0, code_ratio='position', sequence_ratio=False, aggregation='sequence',
      kl=0.02, kl_estimator='k3', kl_place='loss', entropy=dict(text=0.0, image=0.0, rate=0.005),
      inner_epochs=1, minibatches=1, micro_batches=1, **_WHOLE,
      optimizer=_optimizer(name='adamw', learning_rate=3e-4, warmup=5, schedule='constant', b2=0.95),
      watch=dict(every=20, prompts=64, divergence=0.0), checkpoint_every=25))

  c.evaluate = ConfigDict(dict(
      prompts=256, decodings=('sampled', 'greedy'), bootstrap=2000, gallery=8,
      # A vision model on any OpenAI-compatible server as one more judge (docs/endpoints.md).
      endpoint=dict(url='', model='', key_variable='OPENAI_API_KEY', prompts=64, samples=3, temperature=0.7, bad_replies=2,
                    smallest_side=224, timeout=60.0, retries=3, requests_per_minute=0.0, max_parallel=4,
                    max_response_bytes=1 << 20, structured=True, input_price=0.0, output_price=0.0)))
  c.report = ConfigDict(dict(conversations=4, wandb=''))
  return c


def _smoke() -> dict:
  return dict(
      data=dict(counts=dict(interleaved=60, understanding=60, text_to_image=60, roles=120, roles_interleaved=40,
                            gold=40, questions=40, validation=16, test=32), shard_records=64),
      image=dict(pictures=256, batch=32, autoencoder=20, steps=60, channels=32, codebook=64),
      model=dict(width=32, layers=2, heads=2, kv_heads=1, head_width=16, mlp_width=64),
      decode=dict(rows=16, max_positions=96),
      warmup=dict(steps=20, rows=4, checkpoint_every=10, long_steps=10),
      writer=dict(steps=20, rows=4, checkpoint_every=10),
      judge=dict(layers=1, reader=1, answers=64, test_answers=64, aside=0.2, steps=10, rows=4, bootstrap=20, challenges=8,
                 align=dict(steps=20, rows=4),
                 baselines=('mean', 'without_text'), checkpoint_every=5),
      synthesize=dict(conversations=8, window=4, in_flight=8, rows=16, rooms=dict(prompts=(224,), judged=()), shard_records=4),
      finetune=dict(steps=10, rows=4, checkpoint_every=5),
      grpo=dict(steps=4, prompts=2, group_size=4, watch=dict(every=2, prompts=8), checkpoint_every=2),
      evaluate=dict(prompts=16, bootstrap=200, gallery=2))


def _small() -> dict:
  return dict(
      data=dict(pixels=64, jitter=1, objects=3,
                counts=dict(interleaved=1500, understanding=40000, text_to_image=60000, roles=120000,
                            roles_interleaved=30000, gold=12000, questions=20000, validation=512, test=2000), shard_records=8000),
      image=dict(codebook=1024, channels=256, kernel=3, code_dim=64, pictures=40000, steps=4000, autoencoder=1000),
      text=dict(size=1024),
      model=dict(width=384, layers=8, heads=6, kv_heads=6, head_width=64, mlp_width=1536),
      decode=dict(rows=512, max_positions=320),
      warmup=dict(steps=2500, rows=64, row_length=384, long_steps=2500,
                  optimizer=dict(learning_rate=0.01, adam_learning_rate=1e-3), checkpoint_every=1000),
      writer=dict(steps=2500, rows=64, row_length=384,
                  optimizer=dict(learning_rate=0.01, adam_learning_rate=1e-3), checkpoint_every=1000),
      judge=dict(layers=4, answers=90000, test_answers=4000, steps=3000, rows=96, row_length=448, challenges=400,
                 widths=dict(tcc=224, icc=576, its=704), checkpoint_every=1000),
      synthesize=dict(conversations=8000, window=4000, in_flight=1024, rows=256,
                      rooms=dict(prompts=(64, 160, 320), short=72, long=224, critic=32, judged=(384,))),
      finetune=dict(steps=1200, rows=64, row_length=512, optimizer=dict(learning_rate=0.005, adam_learning_rate=5e-4),
                    checkpoint_every=1000),
      grpo=dict(steps=200, prompts=32, group_size=16, max_prompt=64, max_positions=288, optimizer=dict(learning_rate=1e-4),
                checkpoint_every=100))


_SIZES = {'smoke': _smoke, 'tiny': dict, 'small': _small}
