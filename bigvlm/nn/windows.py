"""Attention within windows of a grid, every second time within shifted ones (Swin, arXiv 2103.14030, section 3.2).

B batch, H×W a grid of tokens, C their width, R rows and Q columns of windows, T (and S) tokens of a window, N heads, D head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core.parts import RecipeError


def relative(window: int, rows: int, columns: int) -> np.ndarray:
    """int [T, T]: where the bias between two tokens of a window of rows × columns is in the table of (2·window-1)² offsets."""
    place_T2 = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    offset_TT2 = place_T2[:, None] - place_T2[None] + window - 1
    return offset_TT2[..., 0] * (2 * window - 1) + offset_TT2[..., 1]


def seen(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """bool [R·Q, T, T]: which tokens of a shifted window were neighbours before the grid was rolled.

    Rolling brings the first rows (columns) behind the last ones; these meet in the last window, in which each keeps to itself.
    """
    region_HW = np.zeros(grid, int)
    for axis in range(2):
        part = np.arange(grid[axis]) >= grid[axis] - shift[axis]
        region_HW = region_HW * 2 + np.expand_dims(part, 1 - axis)
    region_WT = rearrange(region_HW, '(r a) (q b) -> (r q) (a b)', a=window[0], b=window[1])
    return region_WT[:, :, None] == region_WT[:, None, :]


class WindowAttention(nn.Module):
    """Multi-head attention [B, H, W, C] -> the same, each token over its window, with a learned bias per head and offset.

    ``window``: the side; the table of biases has its (2·window-1)² offsets. A grid whose side is smaller is one window there
    and not shifted; others are padded at their ends to a multiple of windows, by tokens of zeros that are attended to as
    any, as in the paper's detectors (microsoft/Swin-Transformer). ``shifted``: windows are moved by half their side.
    """
    heads: int
    window: int
    shifted: bool
    kernel_init: Any = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BHWC):
        width = x_BHWC.shape[-1]
        if width % self.heads:
            raise RecipeError(f'heads: {self.heads} heads do not divide the width {width}')
        sides = x_BHWC.shape[1:3]
        window = tuple(min(self.window, side) for side in sides)
        shift = tuple(self.window // 2 if self.shifted and side > self.window else 0 for side in sides)
        grid = tuple(-(-side // w) * w for side, w in zip(sides, window))
        x_BHWC = jnp.pad(x_BHWC, ((0, 0), *((0, whole - side) for whole, side in zip(grid, sides)), (0, 0)))
        x_BHWC = jnp.roll(x_BHWC, [-s for s in shift], axis=(1, 2))
        x_BRQTC = rearrange(x_BHWC, 'b (r a) (q c) w -> b (r q) (a c) w', a=window[0], c=window[1])
        x_BRQTC = self._attend(x_BRQTC, grid, window, shift)
        x_BHWC = rearrange(x_BRQTC, 'b (r q) (a c) w -> b (r a) (q c) w', r=grid[0] // window[0], a=window[0])
        return jnp.roll(x_BHWC, shift, axis=(1, 2))[:, :sides[0], :sides[1]]

    def _attend(self, x_BWTC, grid, window, shift):
        """Attention within each of the windows, here W of them; the softmax is float32."""
        width = x_BWTC.shape[-1]

        def project(name):
            y_BWTC = nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x_BWTC)
            return rearrange(checkpoint_name(y_BWTC, 'qkv'), 'b w t (n d) -> b w t n d', n=self.heads)

        query, key, value = project('query'), project('key'), project('value')
        table = self.param('position_bias', nn.initializers.truncated_normal(.02), ((2 * self.window - 1) ** 2, self.heads))
        logits_BWNTS = jnp.einsum('bwtnd,bwsnd->bwnts', query * (width // self.heads) ** -.5, key, preferred_element_type=jnp.float32)
        logits_BWNTS = logits_BWNTS + rearrange(table[relative(self.window, *window)], 't s n -> n t s').astype(logits_BWNTS.dtype)
        if any(shift):
            logits_BWNTS = jnp.where(seen(grid, window, shift)[:, None], logits_BWNTS, jnp.finfo(logits_BWNTS.dtype).min)
        share_BWNTS = jax.nn.softmax(logits_BWNTS, axis=-1).astype(self.dtype)
        mixed_BWTC = rearrange(jnp.einsum('bwnts,bwsnd->bwtnd', share_BWNTS, value), 'b w t n d -> b w t (n d)')
        return nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init, name='out')(checkpoint_name(mixed_BWTC, 'context'))
