"""Masked language modelling (BERT, arXiv 1810.04805, section 3.1): what the text's masked tokens were.

B batch, L tokens, K tokens to predict at most, W width, V vocabulary.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core.parts import RecipeError
from bigvlm.core.paths import look_up
from bigvlm.nn.transformer import ACTIVATIONS, used


class Vocabulary(nn.Module):
    """A kernel [W, V] of its own for the product with the vocabulary."""
    width: int
    vocab: int

    @nn.compact
    def __call__(self):
        return self.param('kernel', nn.initializers.truncated_normal(.02), (self.width, self.vocab))


class Head(nn.Module):
    """BERT's prediction: dense, GELU, norm, and a product with the vocabulary: [B, K, W] -> float32 logits [B, K, V].

    ``table_VW``: the tower's, if prediction is tied to it, instead of a kernel of the head's own.
    """
    vocab: int
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(self, x_BKW, table_VW=None):
        init, width, dtype = nn.initializers.truncated_normal(.02), x_BKW.shape[-1], x_BKW.dtype
        x_BKW = ACTIVATIONS['gelu'](used(nn.Dense, self, 'dense', dtype)(width, dtype=dtype, kernel_init=init, name='dense')(x_BKW))
        x_BKW = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='norm')(x_BKW)
        kernel_WV = used(Vocabulary, self, 'vocabulary', dtype)(width, self.vocab, name='vocabulary')() if table_VW is None else table_VW.T
        bias_V = self.param('bias', nn.initializers.zeros, kernel_WV.shape[1:])
        return jnp.einsum('bkw,wv->bkv', x_BKW, kernel_WV, preferred_element_type=jnp.promote_types(dtype, jnp.float32)) + bias_V


class MaskedText(nn.Module):
    """Cross-entropy of the masked tokens, its mean over all those of the global batch.

    Reads what the op ``mask_tokens`` writes: the text to read at ``text``, which ``text_tower`` encodes, and ``target``, -1
    where nothing is predicted. ``most``: how many tokens of a text are predicted, so that logits are [B, most, V]; of more,
    the first ones, and ``left_out`` counts the others. 0 is max(1, round(.15 L)), the op's own bound at its default rate. If
    the op was given ``positions``, name its key here, and ``most``: the length of both arrays.
    ``tied``: the product with the vocabulary is with the tower's own table (towers/bert.py has one to give) and a bias;
    else with a kernel of ``vocab`` columns. A target beyond the vocabulary makes the loss NaN.
    """
    text: str = 'masked_text'
    target: str = 'text_target'
    positions: str = ''
    text_tower: str = 'text'
    vocab: int = 30_522
    tied: bool = False
    most: int = 0
    norm_eps: float = 1e-12
    weight: float = 1.
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        if self.vocab < 1:
            raise RecipeError(f'vocab: found {self.vocab}; valid: the number of ids of the tokenizer')
        if self.most < 0 or self.positions and not self.most:
            raise RecipeError(f'most: found {self.most}; valid: {"the length of positions" if self.positions else "0 or more tokens"}')
        super().__post_init__()

    def setup(self):
        self.head = Head(self.vocab, self.norm_eps)

    def towers(self) -> dict[str, tuple[str, str]]:
        """{batch key: (field, tower)}: the text to read, and the targets, which are as long where they are one per token."""
        keys = (self.text,) if self.positions else (self.text, self.target)
        return {key: ('text_tower', self.text_tower) for key in keys}

    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{batch key: (shape, dtype)} of what no tower is asked about."""
        return {key: ((self.most,), 'int32') for key in (self.positions, self.target)} if self.positions else {}

    def _chosen(self, batch: Mapping[str, jax.Array]):
        """(places [B, K], targets [B, K], -1 for none, how many of each text are left out [B])."""
        target = look_up(batch, self.target)
        if self.positions:
            return look_up(batch, self.positions), target, jnp.zeros(len(target), jnp.float32)
        length = target.shape[1]
        most = min(self.most or max(1, round(.15 * length)), length)
        order_BK = jnp.argsort(target < 0, axis=1, stable=True)[:, :most]  # masked tokens first, in their order
        chosen_BK = jnp.take_along_axis(target, order_BK, axis=1)
        return order_BK, chosen_BK, ((target >= 0).sum(axis=1) - (chosen_BK >= 0).sum(axis=1)).astype(jnp.float32)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example, float32 [B]: the sum of its tokens' cross-entropies, how many they are, how many are right, left out."""
        place_BK, target_BK, left_B = self._chosen(batch)
        tokens_BLW = encode(self.text_tower, self.text).tokens_BLD
        table_VW = self._table(encode) if self.tied else None
        logits_BKV = self.head(jnp.take_along_axis(tokens_BLW, place_BK[:, :, None], axis=1), table_VW)
        asked_BK = target_BK >= 0
        target_BK = jnp.maximum(target_BK, 0)
        right_BK = jnp.take_along_axis(logits_BKV, target_BK[:, :, None], axis=2)[:, :, 0]  # NaN beyond the vocabulary
        entropy_BK = jnp.where(asked_BK, jax.nn.logsumexp(logits_BKV, axis=2) - right_BK, 0.)
        hit_BK = asked_BK & (jnp.argmax(logits_BKV, axis=2) == target_BK)
        return {'sum_B': entropy_BK.sum(axis=1), 'count_B': asked_BK.sum(axis=1).astype(jnp.float32),
                'right_B': hit_BK.sum(axis=1).astype(jnp.float32), 'left_B': left_B}

    def _table(self, encode: Callable) -> jax.Array:
        tower = getattr(encode.model, self.text_tower)
        if not hasattr(tower, 'table'):
            raise RecipeError(f'tied: towers.{self.text_tower} has no table to give; valid: False, or a tower with one, as bert')
        return tower.table()

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar (0 if nothing is masked); ``accuracy`` of the masked tokens, ``masked`` and
        ``left_out`` tokens per example, and ``loss_B``, each example's part of the loss, whose mean is the loss."""
        sum_B, count_B, right_B, left_B = (features[key] for key in ('sum_B', 'count_B', 'right_B', 'left_B'))
        count = jnp.maximum(count_B.sum(), 1.)
        loss = sum_B.sum() / count
        return loss, {'accuracy': right_B.sum() / count, 'masked': count_B.mean(), 'left_out': left_B.mean(),
                      'loss_B': jax.lax.stop_gradient(sum_B) * (len(sum_B) / count)}
