"""Attention on a TPU by jax's Pallas kernel ("splash"): the matrix of scores never leaves the chip's fast memory.

B batch, T queries, S keys, N heads, H head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels, splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from bigvlm.core import mesh as mesh_lib

_LANES = 128  # the kernel's tiles are multiples of it
_LARGEST = 512  # side of a tile: float32 scores of 512 × 512 are 1 MiB


def attend(query_BTNH, key_BSNH, value_BSNH, *, mask_BS=None, causal: bool = False, interpret: bool = False):
    """Scaled dot-product attention -> [B, T, N, H], on every mesh: heads over ``tensor`` where it divides them.

    Lengths are padded to whole tiles; padded keys are masked as ``mask_BS`` masks them. ``interpret`` runs the kernel
    without a TPU.
    """
    batch, t, heads, width = query_BTNH.shape
    s = key_BSNH.shape[1]
    if mask_BS is None:
        mask_BS = jnp.ones((batch, s), bool)
    q_tile, k_tile = _tile(t), _tile(s)
    query_BTNH = _padded(query_BTNH * width ** -.5, q_tile)
    key_BSNH, value_BSNH, mask_BS = (_padded(x, k_tile) for x in (key_BSNH, value_BSNH, mask_BS))
    run = functools.partial(_local, causal=causal, tiles=(q_tile, k_tile), interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        axes = mesh_lib.batch_axes(mesh)
        tensor = 'tensor' if 'tensor' in mesh.axis_names and heads % mesh.shape['tensor'] == 0 else None
        tokens = P(axes, None, tensor)
        # A kernel does not say which of its results differ between devices, so that check_vma could not check them.
        run = jax.shard_map(run, in_specs=(tokens, tokens, tokens, P(axes)), out_specs=tokens, check_vma=False)
    return run(query_BTNH, key_BSNH, value_BSNH, mask_BS)[:, :t]


def _tile(length: int) -> int:
    """The tile that pads ``length`` least; of those the largest."""
    return min(range(_LANES, _LARGEST + 1, _LANES), key=lambda tile: (-length % tile, -tile))


def _padded(x, tile: int):
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % tile), *[(0, 0)] * (x.ndim - 2)))


def _local(query_BTNH, key_BSNH, value_BSNH, mask_BS, *, causal: bool, tiles: tuple[int, int], interpret: bool):
    """One device's part. A key that may be attended to is in segment 1, as all queries are; the others are in 0."""
    (t, heads), s = query_BTNH.shape[1:3], key_BSNH.shape[1]
    q, k = tiles
    one = masks.CausalMask((t, s)) if causal else masks.FullMask((t, s))
    sizes = kernels.BlockSizes(block_q=q, block_kv=k, block_q_dkv=q, block_kv_dkv=k, block_q_dq=q, block_kv_dq=k)
    attention = kernels.make_splash_mha(masks.MultiHeadMask([one] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes,
                                        residual_checkpoint_name='context', interpret=interpret)

    def example(query_TNH, key_SNH, value_SNH, mask_S):
        segments = kernels.SegmentIds(jnp.ones(t, jnp.int32), mask_S.astype(jnp.int32))
        query_NTH, key_NSH, value_NSH = (jnp.swapaxes(x, 0, 1) for x in (query_TNH, key_SNH, value_SNH))
        return jnp.swapaxes(attention(query_NTH, key_NSH, value_NSH, segments), 0, 1)
    return jax.vmap(example)(query_BTNH, key_BSNH, value_BSNH, mask_BS)
