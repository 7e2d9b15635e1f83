"""Stage `convert`: a downloaded checkpoint of a public family becomes the policy `convert` of a work folder.

    python -m intersyn_jax convert --config=configs/anole.py --workdir=runs/anole --from=FOLDER [--family=NAME] [--dtype=float32]

Names, shapes and types of all tensors are compared with what config.json describes before any is read. Then one parameter
after another is read, turned into our form and written, so that memory holds a few tensors at any time, whatever the size
of the model. A conversion that was cut is begun again; `family.json`, written last, says that it is whole.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import folder, table, weights
from intersyn_jax.models.families.family import Family
from intersyn_jax.models.families.folder import Part
from intersyn_jax.models.families.weights import Spec, Tensor
from intersyn_jax.stages.common import Run, fingerprint
from intersyn_jax.stages.converted import FEATURES, IMAGE, MODEL, Checkpoint, folder_of, known, wanted
from intersyn_jax.training import checkpoints
from intersyn_jax.training.metrics import replace_text

NAMES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
"""Types of weights: what safetensors and what this program calls them."""

FILES = ('*.json', '*.jinja', '*.model', '*.txt', '*.tiktoken', 'LICENSE*')
"""What is kept of a downloaded folder beside its weights. No code: nothing here runs it."""

_LARGEST_FILE = 256 << 20


def run(run: Run) -> dict[str, Any]:
  """Converts `--from` and gives the summary."""
  root, hf, family = _folder(run)
  if run.summary('convert') is not None:
    run.check_config('convert')
    if hf is not None:
      _check_same(run, root, hf)
    run.say('convert: complete')
    return run.summary('convert')
  if root is None:
    raise UserError('--from is missing: name the downloaded folder, the one with config.json')
  if jax.process_count() > 1:
    raise UserError('convert runs in one process: start it alone on one machine, and the other stages on all')
  target = pathlib.Path(run.workdir) / 'convert'
  shutil.rmtree(target, ignore_errors=True)  # cut before its end, or not there
  run.begin('convert')
  checkpoint = Checkpoint(family, root, run.config)
  tensors = weights.open_tensors(root, family.folders, family.codec_files, family.older)
  parts, dtype, unused = match(checkpoint, tensors, run.options.get('dtype', ''))

  _copy_files(root, family, target / 'files')
  _write_unused({name: tensors[name] for name in unused}, target / 'unused')
  progress = run.progress('convert', sum(len(part.shapes) for part in parts.values()), unit='array')
  done = 0

  def announced(make: Callable[[], np.ndarray]) -> np.ndarray:
    nonlocal done
    done += 1
    progress.update(done)
    return make()

  for name, part in parts.items():
    pending = {path: checkpoints.Pending(source.shape, source.dtype, lambda make=source.make: announced(make))
               for path, source in folder.sources(part, tensors).items()}
    checkpoints.save_params(folder_of(run.workdir, name), pending, identity=run.config_hash('convert'))
  replace_text(target / 'tensors.json', json.dumps(
      {name: [t.dtype, list(t.shape), weights.file_without_shard(root, t.file), t.name] for name, t in tensors.items()}))
  facts = {'family': family.name, 'dtype': dtype, 'config': fingerprint(hf)}
  replace_text(target / 'family.json', json.dumps(facts, indent=1))
  return run.write_summary('convert', facts | {
      'tensors': len(tensors), 'unused': len(unused), 'new_rows': len(checkpoint.new_rows),
      **{f'parameters.{name}': sum(int(np.prod(s.shape)) for s in part.shapes.values()) for name, part in parts.items()}})


def match(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], dtype: str = '') -> tuple[dict[str, Part], str, list[str]]:
  """What the tensors of a folder become.

  Args:
    checkpoint: as config.json tells it.
    tensors: as the files tell it.
    dtype: of the model's parameters; '' keeps theirs.

  Returns:
    the parts, the type of the model's parameters, and the names of the tensors that no parameter needs.

  Raises:
    UserError: the two do not tell the same.
  """
  root, family = checkpoint.root, checkpoint.family
  if dtype and dtype not in NAMES.values():
    raise UserError(f'--dtype={dtype} is no type of weights; take {", ".join(NAMES.values())}')
  if checkpoint.original.trunk.layers > len(tensors):  # told before a list of their names fills the memory
    raise UserError(f'{root / "config.json"}: {checkpoint.original.trunk.layers} layers (num_hidden_layers), but the weights are '
                    f'{len(tensors)} tensors in all; download the folder again')
  parts = {MODEL: checkpoint.model_part(dtype or 'float32'),
           IMAGE: folder.codec_part(root, family, checkpoint.codec, tensors)}
  if features := checkpoint.features_part():
    parts[FEATURES] = features
  folder.check(root, parts.values(), tensors, folder.unused_by(family, checkpoint.codec, checkpoint.features))
  dtype = dtype or NAMES[folder.dtype_of(parts[MODEL], tensors, str(root))]
  parts[MODEL] = checkpoint.model_part(dtype)
  needed = {name for part in parts.values() for entry in part.entries for name in entry.theirs}
  unused = [name for name in tensors if name not in needed]
  _check_copies(family, tensors, unused)
  return parts, dtype, unused


def _check_copies(family: Family, tensors: Mapping[str, Tensor], unused: list[str]) -> None:
  """Tensors that a checkpoint may hold twice must be equal: only one of them is used."""
  for copy, original in family.copies.items():
    if copy in unused and weights.read(tensors[copy]).tobytes() != weights.read(tensors[original]).tobytes():
      raise UserError(f'{tensors[copy].file}: {copy} differs from {original}, but config.json says that they are one '
                      '(tie_word_embeddings); correct config.json')


def _folder(run: Run) -> tuple[pathlib.Path | None, dict[str, Any] | None, Family | None]:
  """The folder that `--from` names, its config.json and its family."""
  here, name = known(run.config), wanted(run.config)
  if not run.options.get('from'):
    return None, None, None
  root = pathlib.Path(run.options['from'])
  if not root.is_dir():
    raise UserError(f'--from={root} is no folder; name the downloaded one, with config.json and weights')
  hf = table.read_config(root, here)
  chosen = run.options.get('family')
  family = table.forced(chosen, root, hf, here) if chosen else table.recognise(root, hf, here)
  if family.name != name:
    raise UserError(f'{root} is of family {family.name}, but config.family is {name!r}: use a configuration of that family, '
                    'such as those in configs/')
  return root, hf, family


def _check_same(run: Run, root: pathlib.Path, hf: Mapping[str, Any]) -> None:
  done = run.summary('convert')
  if done['config'] != fingerprint(hf) or run.options.get('dtype', done['dtype']) != done['dtype']:
    raise UserError(f'{run.workdir} holds a checkpoint that was converted from another folder than {root}, or to another '
                    f'--dtype; name another --workdir, or remove {run.workdir / "convert"}')


def _copy_files(root: pathlib.Path, family: Family, target: pathlib.Path) -> None:
  """config.json, tokenizer, templates and licence, with the folders that they lie in."""
  for below in family.folders if '' in family.folders else ('', *family.folders):
    for path in sorted({path for pattern in FILES for path in (root / below).glob(pattern)}):
      if not path.is_file() or path.name.endswith('.index.json'):
        continue
      if weights.inside(path, root).stat().st_size > _LARGEST_FILE:
        raise UserError(f'{path} is larger than {_LARGEST_FILE >> 20} MiB; it is copied along with config.json: move it away')
      (target / below).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, target / below / path.name)


def _write_unused(tensors: Mapping[str, Tensor], target: pathlib.Path) -> None:
  if tensors:
    target.mkdir(parents=True)
    weights.write_tensors(target, {name: Spec(t.dtype, t.shape) for name, t in tensors.items()},
                          ((name, weights.read(t)) for name, t in tensors.items()))
