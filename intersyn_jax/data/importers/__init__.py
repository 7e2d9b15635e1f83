"""Readers of published data sets: rows in, conversations out, what cannot be used listed with its reason.

Each is a module with

    conversations(path, reject, *, pixels, folder=None, encoding='PNG', fit='crop') -> rows.Conversations

and, where a source is several files, `files(path, field)`, which lists them. SOURCES names them for `data.source`.
"""

from __future__ import annotations

import dataclasses
import importlib
import types

FILE = 'JSON or JSON Lines file'
LINES = 'JSON Lines file, or folder of such files,'
PARQUET = 'parquet file, or folder of parquet files,'


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set that can be imported.

  Attributes:
    module: of this package.
    split: of a work folder, which its rows become.
    kind: what `data.path` must name.
    description: for the metadata of the shards.
  """

  module: str
  split: str
  kind: str
  description: str

  def load(self) -> types.ModuleType:
    return importlib.import_module(f'{__name__}.{self.module}')


SOURCES: dict[str, Source] = {
    'intersyn_release': Source('intersyn', 'interleaved', FILE, 'InterSyn: rows of the released generator'),
    'intersyn_flat': Source('flat', 'interleaved', PARQUET, 'InterSyn: flat rows of the released data set'),
    'opening': Source('opening', 'interleaved', FILE, 'OpenING: questions and interleaved answers with photographs'),
    # Documents.
    'obelics': Source('obelics', 'interleaved', PARQUET, 'OBELICS: web documents of texts and pictures'),
    'mmc4': Source('mmc4', 'interleaved', LINES, 'Multimodal C4: web documents, a picture before the sentence it goes with'),
    'comm': Source('comm', 'interleaved', f'file of torch.save, or {FILE}', 'CoMM: instructions and stories in steps'),
    # What the warm-up of unified GRPO is trained on.
    'genhowto': Source('genhowto', 'interleaved', FILE, 'Actions: before, during and after, each with its picture'),
    'dense_captions': Source('dense_captions', 'interleaved', FILE, 'Videos told event by event, each with a key frame'),
    'openstory': Source('openstory', 'interleaved', f'{FILE}, or parquet file or folder of parquet files,',
                        'Stories in key frames with captions'),
    'caption_pairs': Source('caption_pairs', 'text_to_image', FILE, 'Pictures with captions, to be drawn from them'),
    'llava': Source('llava', 'understanding', FILE, 'Conversations about pictures'),
    # Benchmarks: nothing trains on them.
    'mmie': Source('mmie', 'test', FILE, 'MMIE: questions and reference answers of texts and pictures'),
    'interleaved_bench': Source('interleaved_bench', 'test', FILE, 'InterleavedBench: instructions, some with gold answers'),
    'isg': Source('isg', 'test', FILE, 'ISG-Bench: questions and golden answers of texts and pictures'),
}
"""What `data.source`, and `source` of an entry of `data.sources`, may name."""
