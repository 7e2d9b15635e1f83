"""intersyn_jax: one JAX model that reads and writes text and images in one token stream."""

__version__ = '0.1.0'
