"""Image-text matching: does this text belong to this image? Judged by a fusion of both, against wrong pairs of the global batch.

Shapes: B batch, M image tokens, N text tokens, V and T their widths, P pairs of the second round.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import exchange, negatives
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder

NEGATIVES = ('hard', 'random')


class Matching(nn.Module):
    """Two-way cross-entropy on the fused class token of right and wrong pairs (ALBEF, arXiv 2107.07651; FLAVA, 2112.04482).

    ``negatives='hard'``: each image with a text, and each text with an image, drawn in proportion to exp(similarity / ``tau``)
    of the pooled embeddings (which get no gradient from that), so two wrong pairs for each right one. ``'random'``: one wrong
    pair for each image with the chance ``wrong``, in place of the right one (FLAVA: .1).
    ``group``: partners come from so many consecutive examples (papers with negatives of one device), 0 for the global batch.
    ``same``: which pairs are right besides an example's own: ``identity``, ``captions`` or ``labels``, as in ``contrastive``.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    fusion: str = 'joint'
    weight: float = 1.
    negatives: str = 'hard'
    wrong: float = .1
    tau: float = .07
    group: int = 0
    same: str = 'identity'
    exchange: str = 'auto'
    tile: int = 1024
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        if self.negatives not in NEGATIVES:
            raise RecipeError(f'negatives: found {self.negatives!r}; valid: {", ".join(NEGATIVES)}')
        if self.same not in dual_encoder.POSITIVES:
            raise RecipeError(f'same: found {self.same!r}; valid: {", ".join(dual_encoder.POSITIVES)}')
        if not 0. < self.wrong < 1. or not self.tau > 0. or self.group < 0:
            raise RecipeError(f'wrong, tau, group: found {self.wrong}, {self.tau}, {self.group}; valid: 0 < wrong < 1, tau > 0, group >= 0')
        exchange.check(self.exchange, self.tile)
        super().__post_init__()

    def setup(self):
        self.judge = nn.Dense(2, kernel_init=nn.initializers.normal(.02))

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: tokens, masks and pooled embeddings of both, a seed, and what tells equal texts."""
        image, text = encode(self.image_tower or self.image, self.image), encode(self.text_tower or self.text, self.text)
        fusion = encode.part(self.fusion)
        keys_B, ids_B2 = encode.keys(f'matching/{self.text}'), jnp.asarray(batch['id'])
        # In evaluation, too, wrong pairs are drawn: then by the examples' numbers, well mixed, since small ones would all be
        # below ``wrong``.
        seed_B = dual_encoder.caption_hash(ids_B2)[:, 0] if keys_B is None else jax.vmap(jax.random.bits)(keys_B)
        found = dict(image_BMV=fusion.read(image), text_BNT=fusion.read(text), text_mask_BN=jnp.asarray(text.mask_BL), seed_B=seed_B,
                     image_BD=dual_encoder.unit(image.pooled_BD), pooled_BD=dual_encoder.unit(text.pooled_BD))
        side = dual_encoder.POSITIVES[self.same].side
        return found if side is None else found | {'side_B': side(batch, self.text)}

    def select(self, features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Of the global batch: int32 [B], the wrong text of each image and the wrong image of each text (-1: there is none)."""
        hard = self.negatives == 'hard'
        text_B, image_B = negatives.draw(
            features['image_BD'], features['pooled_BD'], 1. / self.tau if hard else 0., features['seed_B'], group=self.group,
            positive=dual_encoder.POSITIVES[self.same].target, side=features.get('side_B'), exchange=self.exchange, tile=self.tile)
        return dict(text_B=text_B, image_B=image_B)

    def pairs(self, features: Mapping[str, jax.Array], selection: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Tokens of image and text of each pair, ``right_P`` and ``counts_P``: a wrong pair that could not be made does not."""
        size = len(features['seed_B'])
        own_B, counts_B = jnp.arange(size), jnp.ones(size, bool)
        if self.negatives == 'random':
            chance_B = (features['seed_B'] >> 8).astype(jnp.float32) * jnp.float32(2 ** -24)
            wrong_B = (chance_B < self.wrong) & (selection['text_B'] >= 0)
            image_P, text_P, right_P, counts_P = own_B, jnp.where(wrong_B, selection['text_B'], own_B), ~wrong_B, counts_B
        else:
            image_P = jnp.concatenate([own_B, own_B, selection['image_B']])
            text_P = jnp.concatenate([own_B, selection['text_B'], own_B])
            right_P = jnp.arange(3 * size) < size
            counts_P = jnp.concatenate([counts_B, selection['text_B'] >= 0, selection['image_B'] >= 0])
        return dict(image_PMV=features['image_BMV'][image_P], text_PNT=features['text_BNT'][text_P],
                    text_mask_PN=features['text_mask_BN'][text_P], right_P=right_P, counts_P=counts_P)

    def features2(self, encode: Callable, pairs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per pair: two logits, of wrong and right."""
        joint = encode.part(self.fusion)(pairs['image_PMV'], pairs['text_PNT'], text_mask=pairs['text_mask_PN'],
                                         keys_B=encode.keys('matching'))
        return dict(logits_P2=self.judge(joint.pooled_BD.astype(jnp.promote_types(joint.pooled_BD.dtype, jnp.float32))),
                    right_P=pairs['right_P'], counts_P=pairs['counts_P'])

    def loss(self, features: Mapping[str, jax.Array], features2: Mapping[str, Any], teacher=None) -> tuple[jax.Array, dict]:
        """The mean over all pairs; ``accuracy``, and that of wrong and of right pairs averaged, ``balanced``: .5 is chance."""
        right_P, counts_P = features2['right_P'], features2['counts_P'].astype(jnp.float32)
        log_p_P2 = jax.nn.log_softmax(features2['logits_P2'])
        loss_P = -jnp.where(right_P, log_p_P2[:, 1], log_p_P2[:, 0])
        hit_P = (log_p_P2[:, 1] > log_p_P2[:, 0]) == right_P

        def mean(x_P, of_P):
            return (x_P * of_P).sum() / jnp.maximum(of_P.sum(), 1.)
        balanced = .5 * (mean(hit_P, counts_P * right_P) + mean(hit_P, counts_P * ~right_P))
        return mean(loss_P, counts_P), jax.lax.stop_gradient({'accuracy': mean(hit_P, counts_P), 'balanced': balanced})
