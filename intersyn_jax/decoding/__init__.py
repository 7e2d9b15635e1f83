"""Floor 3: the interleaved decoder (DESIGN 6)."""

from intersyn_jax.decoding.decoder import Completions, DecodeConfig, Decoder, join
from intersyn_jax.decoding.generator import Generator

__all__ = ['Completions', 'DecodeConfig', 'Decoder', 'Generator', 'join']
