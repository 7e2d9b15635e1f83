"""What libtpu must be told before jax is loaded, for all tests of this folder."""

from intersyn_jax.stages.aot import chips

chips.prepare()
