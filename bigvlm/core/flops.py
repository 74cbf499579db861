"""Floating-point operations of a traced function, counted from its jaxpr.

Compilers' own counts miss loop trips (TPU) and custom calls (GPU); the jaxpr has both. Matrix products and convolutions
only: 2·m·n·k, a scan's body times its length, a shard_map's body times its devices, a Pallas kernel's times its grid (so
what a kernel skips counts), cuDNN's attention by its formula: 2 products forward, 5 backward.
"""

import math
from typing import Any

import jax


def count(function, *args: Any) -> int:
    """FLOPs of ``function(*args)`` over all devices together; ``args`` may be ShapeDtypeStructs."""
    return _jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr(jaxpr) -> int:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
        (contract, _), _ = params['dimension_numbers']
        left = eqn.invars[0].aval.shape
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[d] for d in contract)
    if name == 'conv_general_dilated':
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[params['dimension_numbers'].rhs_spec[0]]
        return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // out_features
    if name in ('dot_product_attention_fwd_wrapper', 'dot_product_attention_bwd_wrapper'):
        (b, t, n, h), s = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape[1]
        return (5 if '_bwd' in name else 2) * 2 * b * n * t * s * h
    times = 1
    if name == 'pallas_call':
        times = math.prod(params['grid_mapping'].grid)
    elif name == 'scan':
        times = params['length']
    elif name == 'shard_map':
        # Only over the axes it takes in hand: on the others its body is still written for the whole array.
        taken = 'newly_manual_axes' if 'newly_manual_axes' in params else 'manual_axes'  # its name in earlier jax
        times = math.prod(params['mesh'].shape[a] for a in params[taken])
    if name == 'cond':
        return max(_jaxpr(branch.jaxpr) for branch in params['branches'])
    return times * sum(_jaxpr(inner) for inner in _inner(params))


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            while not hasattr(item, 'eqns') and hasattr(item, 'jaxpr'):  # since jax 0.12 a jaxpr's own jaxpr is itself
                item = item.jaxpr
            if hasattr(item, 'eqns'):
                yield item
