"""Randomness that is a function of numbers: mixing 32-bit words."""

import jax
import jax.numpy as jnp


def mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: a bijection of uint32 words in which each input bit reaches each output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
