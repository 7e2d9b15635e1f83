"""SEIR asks a real server, `transformers serve`, for text: a random model's junk becomes retries, never data."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tokenizers
import torch
import transformers

from intersyn_jax.data import roles
from intersyn_jax.synthesis import engine, seir, served
from intersyn_jax.synthesis.interfaces import Address, Crew, Reply, Write
from tests.synthesis import fake

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
ENDINGS = 24
"""So many of the 320 words end a reply, so that the random model does not always run into the limit."""


def random_llama(folder: pathlib.Path) -> None:
  """A checkpoint folder as the Hub has them: weights, tokenizer with a chat template, generation settings."""
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = tokenizers.decoders.ByteLevel()
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=['</s>'],
                                           show_progress=False)
  bpe.train_from_iterator([*roles.TAGS.values(), fake.QUESTION, 'a large red cross top left on sand'] * 4, trainer)
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='</s>', pad_token='</s>')
  tokenizer.chat_template = TEMPLATE
  tokenizer.save_pretrained(folder)
  torch.manual_seed(0)
  size = len(tokenizer)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
      num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=None, eos_token_id=0, pad_token_id=0))
  model.generation_config = transformers.GenerationConfig(do_sample=True, eos_token_id=[0, *range(size - ENDINGS, size)],
                                                          pad_token_id=0)
  model.save_pretrained(folder)


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  """(address, model) of a server in a process of its own."""
  folder = tmp_path_factory.mktemp('random_llama')
  random_llama(folder)
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  log = folder / 'server.log'
  command = [pathlib.Path(sys.executable).with_name('transformers'), 'serve', '--host', '127.0.0.1', '--port', str(port),
             '--device', 'cpu']
  environment = os.environ | {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
  with log.open('wb') as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment) as process:
    try:
      until = time.monotonic() + 240
      while not _answers(f'http://127.0.0.1:{port}/health'):
        if process.poll() is not None or time.monotonic() > until:
          pytest.fail(f'transformers serve does not start:\n{log.read_text()[-2000:]}')
        time.sleep(0.5)
      yield f'http://127.0.0.1:{port}/v1', str(folder)
    finally:
      process.terminate()
      try:
        process.wait(20)
      except subprocess.TimeoutExpired:
        process.kill()


def _answers(url: str) -> bool:
  try:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
      return response.status == 200
  except (urllib.error.URLError, OSError):
    return False


def writer(server, max_tokens, method):
  """One request at a time: this server seeds all of them with one generator."""
  url, model = server
  section = dict(url=url, model=model, key_variable='', temperature=1.0, max_tokens=max_tokens, timeout=60.0, retries=0,
                 max_parallel=1)
  return served.served({'language': section}, method).language


def test_junk_becomes_retries_and_reasons(server):
  method, others = fake.method(retries=2), fake.Actor()
  runs = []
  for _ in range(2):
    language = writer(server, 48, method)
    samples = {i: seir.converse(seir.plan(method, i), method) for i in range(6)}
    products = engine.advance(Crew(language, others, others), samples)
    calls = [call for product in products.values() for turn in product.turns for call in turn.calls]
    counted = language.counters()
    assert counted['replies'] == counted['requests'] == len(calls) and counted['unmetered'] == 0
    assert counted['input_tokens'] > 100 * len(calls) and 0 < counted['output_tokens'] <= 48 * len(calls)
    runs.append([(call.address, call.output, call.problem) for call in calls])
    for product in products.values():  # nobody can write `answer : ... caption : ...` by chance
      assert product.conversation is None and product.reason.startswith(('question_write: ', 'answer_write: '))
      last = [call for call in product.turns[0].calls if call.address.role == product.reason.split(':')[0]]
      assert [call.address.retry for call in last] == [0, 1, 2] and all(call.problem for call in last)
      assert all(call.output == '' for call in last if call.problem in ('cut short', 'empty'))
    problems = {call.problem for call in calls}
    assert '' in problems and 'no `answer :` in the completion' in problems  # some junk is a question, none an answer
    assert counted['failures'].keys() <= {'cut short', 'empty'}
  assert runs[0] == runs[1]  # it honours seeds
  assert not others.requests


def test_a_reply_that_is_cut_is_a_failure(server):
  language = writer(server, 1, fake.method())
  requests = [Write(Address('c', i, 'question_write'), roles.question_write('a topic', 'draw *')) for i in range(4)]
  replies = language.run('', 0, [language.prepare(request) for request in requests])
  assert set(replies) <= {Reply('', 'cut short'), Reply('', 'empty')} and Reply('', 'cut short') in replies
