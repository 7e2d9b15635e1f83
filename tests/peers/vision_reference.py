"""What the public code makes of the tiny codecs' weights: transformers where it has the part, plain torch where it has not.

Everything is float32. Pixels are NCHW in -1..1, as there; results are returned as numpy in our order of axes.
"""

import math

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from tests.models.vision import tiny


def reference(name: str) -> dict[str, np.ndarray]:
  """Results of one tiny codec on `tiny.pictures`.

  Returns:
    `codes` int[B,P,D], `recon` float[B,H,W,3] (the picture of these codes) and `gap`, by how much the nearest code vector is
    nearer (squared) than the next, where that is least; or `features` float[B,P,d].
  """
  with torch.no_grad():
    return {'chameleon': chameleon, 'janus': janus, 'emu3': emu3, 'vila_u': vila_u, 'janus_features': janus_features}[name]()


def pixels() -> torch.Tensor:
  return torch.from_numpy(tiny.pictures()).permute(0, 3, 1, 2).float() / 127.5 - 1


def load(module: torch.nn.Module) -> dict[str, torch.Tensor]:
  """Fills every tensor of a module with values of its name, and returns them."""
  state = {name: torch.from_numpy(tiny.values(name, tuple(tensor.shape))) if tensor.dtype == torch.float32 else tensor
           for name, tensor in module.state_dict().items()}
  module.load_state_dict(state, strict=True)
  module.eval()
  return state


def chameleon() -> dict[str, np.ndarray]:
  model = transformers.models.chameleon.modeling_chameleon.ChameleonVQVAE(
      transformers.models.chameleon.configuration_chameleon.ChameleonVQVAEConfig(**tiny.CHAMELEON['vq_config']))
  load(model)
  codec = tiny.CODECS['chameleon'][0](tiny.CHAMELEON)
  state = {n: torch.from_numpy(tiny.values(n, s)) for n, s in tiny.shapes_of(codec).items()}
  encoded = model.encode(pixels(), return_dict=True)
  latents = model.quant_conv(encoded.last_hidden_state)
  codes = encoded.image_tokens.view(tiny.COUNT, -1, 1)
  book = state['quantize.embedding.weight']
  vectors = book[codes[..., 0]].transpose(1, 2).reshape(tiny.COUNT, -1, *latents.shape[2:])
  return results(codes, taming_decoder(state, conv(state, 'post_quant_conv', vectors), attention=(1,)), gap(latents, book))


def janus() -> dict[str, np.ndarray]:
  """The encoder and decoder of transformers; the comparison with both lengths one, as in the original vq_model.py."""
  config = transformers.models.janus.configuration_janus.JanusVQVAEConfig(**tiny.JANUS['vq_config'], num_patches=8)
  model = transformers.models.janus.modeling_janus.JanusVQVAE(config)
  state = load(model)
  latents = F.normalize(model.quant_conv(model.encoder(pixels())), dim=1)
  book = F.normalize(state['quantize.embedding.weight'], dim=1)
  codes = distances(latents, book).argmin(-1)[..., None]
  # Where the code vectors have length one already, what transformers compares is the same.
  model.quantize.embedding.weight.copy_(book)
  assert torch.equal(model.encode(pixels(), return_dict=True).image_tokens.view(codes.shape), codes)
  return results(codes, model.decode(codes[..., 0]), gap(latents, book))


def emu3() -> dict[str, np.ndarray]:
  model = transformers.models.emu3.modeling_emu3.Emu3VQVAE(
      transformers.models.emu3.configuration_emu3.Emu3VQVAEConfig(**tiny.EMU3['vq_config'], attn_implementation='eager'))
  state = load(model)
  sizes = torch.tensor([[16, 16]] * tiny.COUNT)
  encoded = model.encode(pixels(), image_sizes=sizes, return_dict=True)
  latents = model.quant_conv(encoded.last_hidden_state.permute(0, 2, 1, 3, 4))[:, :, 0]
  grid = torch.stack(list(encoded.image_tokens))
  return results(grid.view(tiny.COUNT, -1, 1), model.decode(grid), gap(latents, state['quantize.embedding.weight']))


def vila_u() -> dict[str, np.ndarray]:
  """The encoder by transformers' SigLIP; quantiser and decoder restated from the original source."""
  c = tiny.VILA_U['vision_tower']['rqvaesiglip']
  config = transformers.SiglipVisionConfig(**c['siglip_config'], attn_implementation='eager')
  model = transformers.SiglipVisionModel(config)
  names = {name: 'siglip_model.vision_model.' + name.removeprefix('vision_model.') for name in model.state_dict()}
  model.load_state_dict({name: torch.from_numpy(tiny.values(names[name], tuple(tensor.shape)))
                         for name, tensor in model.state_dict().items()}, strict=True)
  left = model.eval()(pixels(), output_hidden_states=True).hidden_states[-2]
  codec = tiny.CODECS['vila_u'][0](tiny.VILA_U)
  state = {n: torch.from_numpy(tiny.values(n, s)) for n, s in tiny.shapes_of(codec).items()}
  book = state['quantizer.codebooks.0.weight'][:c['n_embed']]
  total, codes, gaps = torch.zeros_like(left), [], []
  for _ in range(c['code_shape'][2]):
    squared = (left[:, :, None] - book).pow(2).sum(-1)
    two = squared.topk(2, largest=False).values
    gaps.append((two[..., 1] - two[..., 0]).min())
    codes.append(squared.argmin(-1))
    total, left = total + book[codes[-1]], left - book[codes[-1]]
  side = c['code_shape'][0]
  latents = total.transpose(1, 2).reshape(tiny.COUNT, -1, side, side)
  latents = F.interpolate(latents, size=tuple(c['decoder_latent_shape']), mode='bilinear')
  recon = taming_decoder(state, conv(state, 'post_quant_conv', latents), attention=(2,))
  return results(torch.stack(codes, -1), recon, min(gaps))


def janus_features() -> dict[str, np.ndarray]:
  config = transformers.models.janus.configuration_janus.JanusVisionConfig(
      **tiny.JANUS['vision_config'], attn_implementation='eager')
  model = transformers.models.janus.modeling_janus.JanusVisionModel(config)
  load(model)
  return {'features': model(pixels()).last_hidden_state.numpy()}


def results(codes: torch.Tensor, recon: torch.Tensor, least: torch.Tensor) -> dict[str, np.ndarray]:
  return {'codes': codes.numpy().astype(np.int32), 'recon': recon.permute(0, 2, 3, 1).numpy(), 'gap': least.numpy()}


def distances(latents: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
  """Squared distances [B,P,C] of latents [B,c,h,w] to code vectors [C,c]."""
  return (latents.flatten(2).transpose(1, 2)[:, :, None] - book).pow(2).sum(-1)


def gap(latents: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
  two = distances(latents, book).topk(2, largest=False).values
  return (two[..., 1] - two[..., 0]).min()


def conv(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
  weight = state[f'{name}.weight']
  return F.conv2d(x, weight, state[f'{name}.bias'], padding=weight.shape[-1] // 2)


def norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
  return F.group_norm(x, 32, state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)


def taming_decoder(state: dict[str, torch.Tensor], z: torch.Tensor, *, attention: tuple[int, ...]) -> torch.Tensor:
  """The decoder of the original vqgan.ckpt, run by the names of its tensors; `attention` are the levels that have it."""
  def block(name, x):
    y = conv(state, f'{name}.conv1', F.silu(norm(state, f'{name}.norm1', x)))
    y = conv(state, f'{name}.conv2', F.silu(norm(state, f'{name}.norm2', y)))
    return (conv(state, f'{name}.nin_shortcut', x) if f'{name}.nin_shortcut.weight' in state else x) + y

  def attend(name, x):
    y = norm(state, f'{name}.norm', x)
    q, k, v = (conv(state, f'{name}.{part}', y).flatten(2) for part in 'qkv')
    weights = torch.softmax(torch.einsum('bcp,bcq->bpq', q, k) / math.sqrt(x.shape[1]), dim=-1)
    return x + conv(state, f'{name}.proj_out', torch.einsum('bpq,bcq->bcp', weights, v).view(x.shape))

  x = conv(state, 'decoder.conv_in', z)
  x = block('decoder.mid.block_2', attend('decoder.mid.attn_1', block('decoder.mid.block_1', x)))
  levels = 1 + max(int(name.split('.')[2]) for name in state if name.startswith('decoder.up.'))
  for level in reversed(range(levels)):
    i = 0
    while f'decoder.up.{level}.block.{i}.norm1.weight' in state:
      x = block(f'decoder.up.{level}.block.{i}', x)
      if level in attention:
        x = attend(f'decoder.up.{level}.attn.{i}', x)
      i += 1
    if level:
      x = conv(state, f'decoder.up.{level}.upsample.conv', F.interpolate(x, scale_factor=2.0, mode='nearest'))
  return conv(state, 'decoder.conv_out', F.silu(norm(state, 'decoder.norm_out', x)))
