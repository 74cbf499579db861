"""bigvlm: pre-training of vision-language models in JAX/Flax, from a laptop to TPU pods and GPU clusters."""

__version__ = '0.1.0'
