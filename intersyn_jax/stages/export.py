"""Stage `export`: a policy of a work folder becomes a folder like the one that was downloaded.

    python -m intersyn_jax export --config=configs/anole.py --workdir=runs/anole --policy=warmup --out=FOLDER

With `--data=FORMAT` it is conversations that are exported instead: see `export_data`.

The folder has the tensors of the downloaded one, by name, shape and type, in safetensors files, and its config.json, tokenizer
and templates. The policy `convert` gives the same tensors bit for bit. What training in another type (`convert --dtype`) has
gained beyond the stored one is rounded away. Rows that the layout added for its tags have no place in the family's tables: they
are left out, and a line says so. The image tokenizer is never trained and goes back as it came.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
from etils import epath

from intersyn_jax.errors import UserError
from intersyn_jax.models.families import folder, weights
from intersyn_jax.models.families.folder import Part
from intersyn_jax.models.families.weights import Spec
from intersyn_jax.stages.common import Run
from intersyn_jax.stages.converted import FEATURES, IMAGE, Converted, folder_of
from intersyn_jax.stages.export_data import empty_folder, export_data
from intersyn_jax.stages.parts import policy_folder
from intersyn_jax.training import checkpoints


def run(run: Run) -> epath.Path:
  """Writes `--out` and gives it."""
  policy = run.options.get('policy', 'convert')
  if not run.options.get('out'):
    raise UserError('--out is missing: name the folder to write')
  if 'data' in run.options:
    if 'policy' in run.options:
      raise UserError('--policy and --data are both given: export one of them at a time')
    return epath.Path(export_data(run, run.options['data'], run.options.get('split', 'refined'), run.options['out']))
  if 'split' in run.options:
    raise UserError('--split is given without --data: name the format of the conversations, e.g. --data=flat')
  out = empty_folder(run.options['out'])
  source = policy_folder(run.workdir, policy)
  checkpoint = Converted(run.workdir, run.config)
  if checkpoints.latest_step(source) is None:
    raise UserError(f'policy {policy} is not trained in {run.workdir} yet: run its stage first')
  part = out.with_name(f'.{out.name}.part')  # of an export that was cut
  shutil.rmtree(part, ignore_errors=True)
  part.parent.mkdir(parents=True, exist_ok=True)
  shutil.copytree(checkpoint.root, part)
  for group in sorted({file for _, _, file, _ in checkpoint.tensors.values()}):
    _write_group(checkpoint, run, source, group, part)
  part.rename(out)
  if checkpoint.new_rows:
    run.say(f'export: {len(checkpoint.new_rows)} rows of the text table are not in {out}: tokens that this program added, which '
            "the family's tokenizer does not have")
  run.say(f'files: {out}')
  return epath.Path(out)


def _write_group(checkpoint: Converted, run: Run, source: epath.Path, group: str, part: pathlib.Path) -> None:
  """Writes the tensors that lay in one file, or in the shards of one."""
  below, stem = pathlib.PurePosixPath(group).parent, pathlib.PurePosixPath(group).name
  members = {name: Spec(dtype, tuple(shape)) for name, (dtype, shape, file, _) in checkpoint.tensors.items() if file == group}
  pieces = []
  for where, whole in _parts(checkpoint, run, source):
    owned = whole.theirs().keys() & members.keys()
    pieces.append((where, [entry for entry in whole.entries if owned.intersection(entry.theirs)]))
  kept = weights.open_tensors(checkpoint.folder / 'unused') if (checkpoint.folder / 'unused').exists() else {}
  kept = {name: tensor for name, tensor in kept.items() if name in members}

  def arrays() -> Iterator[tuple[str, np.ndarray]]:
    for where, entries in pieces:
      likes = checkpoints.param_shapes(where)
      read = checkpoints.read_params(where, {path: likes[path] for entry in entries for path in entry.ours})
      yield from folder.written(entries, (array for _, array in read), members)
    yield from ((name, weights.read(tensor)) for name, tensor in kept.items())

  order = [name for _, entries in pieces for entry in entries for name in entry.theirs] + list(kept)
  stored = {name: checkpoint.tensors[name][3] for name in order}
  (part / below).mkdir(parents=True, exist_ok=True)
  weights.write_tensors(part / below, {stored[name]: members[name] for name in order},
                        ((stored[name], array) for name, array in arrays()), stem=stem)


def _parts(checkpoint: Converted, run: Run, source: epath.Path) -> list[tuple[epath.Path, Part]]:
  """Where the parameters of each part lie here, and where they lay in the folder."""
  codec = folder.codec_part(checkpoint.root, checkpoint.family, checkpoint.codec, checkpoint.tensors)
  found = [(source, checkpoint.model_part(checkpoint.dtype)), (folder_of(run.workdir, IMAGE), codec)]
  features = checkpoint.features_part()
  return [*found, *([(folder_of(run.workdir, FEATURES), features)] if features else [])]
