"""The language sides of the families as others have them: transformers' modules, and VILA-U's parts written down plainly."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from intersyn_jax.interleave.layout import CODES, FEATURES
from tests.models import tiny_lm
from tests.models.tiny_lm import Outputs

CLASSES = {
    'chameleon': ('ChameleonForConditionalGeneration', 'ChameleonConfig'),
    'swin': ('ChameleonForConditionalGeneration', 'ChameleonConfig'),
    'emu3': ('Emu3ForConditionalGeneration', 'Emu3Config'),
    'janus': ('JanusForConditionalGeneration', 'JanusConfig'),
    'liquid': ('GemmaForCausalLM', 'GemmaConfig'),
    'vila_u': ('LlamaForCausalLM', 'LlamaConfig'),
}


def built(case: str, hf: dict) -> torch.nn.Module:
  """Their module of a config.json."""
  hf = hf['llm'] if case == 'vila_u' else hf
  model_class, config_class = (getattr(transformers, name) for name in CLASSES[case])
  given = {name: value for name, value in hf.items() if name not in ('architectures', 'image_pixels', 'model_type')}
  return model_class(config_class(**given, attn_implementation='eager'))


@torch.no_grad()
def loaded(case: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
  """Their module with the tensors of `tiny_lm`; and the tensors it has no place for (VILA-U's own parts)."""
  model = built(case, tiny_lm.CASES[case][1]).float().eval()
  found = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in tiny_lm.tensors(case).items()}
  if case == 'vila_u':
    own = {name: a for name, a in found.items() if not name.startswith('llm/')}
    found = {name.removeprefix('llm/'): a for name, a in found.items() if name.startswith('llm/')}
  else:
    own = {}
  missing, unexpected = model.load_state_dict(found, strict=False)
  assert not unexpected
  tied = ['lm_head.weight'] if case == 'liquid' else []
  vision = ('model.vqmodel.', 'model.vision_model.')  # what makes codes and features of pictures
  assert [name for name in missing if not name.startswith(vision)] == tied
  return model, own


@torch.no_grad()
def outputs(case: str) -> Outputs:
  """Theirs of `tiny_lm.batch`, in float32."""
  model, own = loaded(case)
  rows, features = tiny_lm.batch(case)
  return {'janus': _janus, 'vila_u': _vila_u}.get(case, _joint)(case, model, own, rows, features)


def _joint(case, model, own, rows, features) -> Outputs:
  """transformers hides Chameleon's image logits in its forward, so the head is applied here."""
  del own, features
  ids = torch.from_numpy(tiny_lm.joint_ids(case, rows))
  logits = (model.model(input_ids=ids).last_hidden_state @ model.lm_head.weight.T).numpy()
  if hasattr(model.model, 'vocabulary_mapping'):
    to_id = model.model.vocabulary_mapping.img2bpe
    codes = np.array([to_id[code] for code in range(len(to_id))])
  else:
    codes = np.arange(logits.shape[-1] - 60, logits.shape[-1])
  return Outputs(np.delete(logits, codes, axis=-1), logits[:, :-1, None, codes])


def _janus(case, model, own, rows, features) -> Outputs:
  del case, own
  modality = torch.from_numpy(rows.modality)[..., None]
  codes = torch.from_numpy(rows.codes[..., 0]).long()
  x = model.get_input_embeddings()(torch.from_numpy(rows.text).long())
  x = torch.where(modality == CODES, model.prepare_embeddings_for_image_generation(codes), x)
  seen = model.model.aligner(torch.from_numpy(features))
  x = torch.where(modality == FEATURES, seen[codes.clamp(max=len(seen) - 1)], x)
  hidden = model.model.language_model(inputs_embeds=x).last_hidden_state
  return Outputs(model.lm_head(hidden).numpy(), model.model.generation_head(hidden)[:, :-1, None].numpy())


def _vila_u(case, model, own, rows, features) -> Outputs:
  """Projector and depth transformer as reference/vila_u_layout.md, sections 3 to 5, has them."""
  del case, features
  codes = torch.from_numpy(rows.codes).long()
  codebook = own[tiny_lm.CODEBOOK]
  linear = lambda x, name: F.linear(x, own[f'{name}.weight'], own[f'{name}.bias'])
  projected = linear(F.gelu(linear(codebook[codes].sum(2), 'mm_projector/layers.0')), 'mm_projector/layers.2')
  words = model.get_input_embeddings()(torch.from_numpy(rows.text).long())
  x = torch.where(torch.from_numpy(rows.modality)[..., None] == CODES, projected, words)
  hidden = model.model(inputs_embeds=x).last_hidden_state
  head = {name.removeprefix('vision_tower/rqtransformer.'): a for name, a in own.items() if 'rqtransformer' in name}
  following = codes[:, 1:].reshape(-1, codes.shape[-1])
  logits = depth_transformer(hidden[:, :-1].reshape(len(following), -1), codebook, following, head, heads=5)
  return Outputs(model.lm_head(hidden).numpy(), logits.reshape(*codes[:, 1:].shape, -1).numpy())


def depth_transformer(hidden: torch.Tensor, codebook: torch.Tensor, codes: torch.Tensor, w: dict[str, torch.Tensor], *,
                      heads: int) -> torch.Tensor:
  """hidden [R,d], codes int[R,D] -> logits [R,D,C], one row and one depth at a time, each depth reading the whole prefix anew."""
  linear = lambda x, name: F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])
  norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'], 1e-5)
  layers = len({name.split('.')[2] for name in w if 'blocks' in name})
  out = []
  for state, row in zip(hidden, codes, strict=True):
    logits = []
    for depth in range(len(row)):
      slots = [linear(state, 'in_mlp_2')]
      for known in range(1, depth + 1):
        slots.append(linear(sum(codebook[code] for code in row[:known]), 'in_mlp_1'))
      x = torch.stack(slots) + w['pos_emb_d'][0, :depth + 1]
      for i in range(layers):
        block = f'head_transformer.blocks.{i}'
        y = norm(x, f'{block}.ln1')
        parts = [linear(y, f'{block}.attn.{name}').view(depth + 1, heads, -1).transpose(0, 1)
                 for name in ('query', 'key', 'value')]
        seen = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(0, 1).reshape(depth + 1, -1)
        x = x + linear(seen, f'{block}.attn.proj')
        x = x + linear(F.gelu(linear(norm(x, f'{block}.ln2'), f'{block}.mlp.0')), f'{block}.mlp.2')
      logits.append(linear(norm(x[-1], 'classifier_mlp.layer_norm'), 'classifier_mlp.linear'))
    out.append(torch.stack(logits))
  return torch.stack(out)
