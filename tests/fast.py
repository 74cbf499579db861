"""Jit for tests: compiling is nearly all of their time, and LLVM's optimisations half of that."""

import functools

import jax

jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
