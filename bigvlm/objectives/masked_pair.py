"""Masked multimodal modelling: masked patches and masked words, each predicted with the help of the other (FLAVA, arXiv 2112.04482).

Shapes: B batch, L patches, T text length.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from bigvlm.nn.encoded import Encoded
from bigvlm.objectives.masked_image import MaskedImage
from bigvlm.objectives.masked_text import MaskedText


class MaskedPair(nn.Module):
    """The losses of ``masked_image`` (of codes) and ``masked_text``, on the tokens of a fusion of masked image and masked text.

    ``image``, ``mask``, ``codes``, ``text``, ``target`` are batch keys, as those objectives read them; ``count``, ``grid``,
    ``image_vocab``, ``image_norm_eps`` (codes) and ``vocab``, ``most``, ``norm_eps`` (words) theirs. The loss is
    ``image_weight`` times the one plus ``text_weight`` times the other, each a mean over what is masked in the global batch.
    """
    image: str = 'image'
    text: str = 'masked_text'
    image_tower: str = 'image'
    text_tower: str = 'text'
    fusion: str = 'joint'
    mask: str = 'patch_mask'
    codes: str = 'patch_codes'
    image_vocab: int = 8192
    image_norm_eps: float = 1e-5
    count: int = 0
    grid: tuple[int, int] = (14, 14)
    target: str = 'text_target'
    vocab: int = 30_522
    most: int = 0
    norm_eps: float = 1e-12
    image_weight: float = 1.
    text_weight: float = 1.
    weight: float = 1.
    kinds: tuple[str, ...] = ('pairs',)

    def setup(self):
        self.patches = MaskedImage(image=self.image, image_tower=self.image_tower, mask=self.mask, codes=self.codes, transform=True,
                                   vocab=self.image_vocab, count=self.count, grid=self.grid,
                                   norm_eps=self.image_norm_eps)
        self.words = MaskedText(text=self.text, target=self.target, text_tower=self.text_tower, vocab=self.vocab, most=self.most,
                                norm_eps=self.norm_eps)

    def towers(self) -> dict[str, tuple[str, str]]:
        """{batch key: (field, tower)} of what is encoded, and of targets of the same shape."""
        text = ('text_tower', self.text_tower)
        return {self.image: ('image_tower', self.image_tower), self.text: text, self.target: text}

    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{batch key: (shape, dtype)} of what no tower is asked about."""
        length = self.grid[0] * self.grid[1]
        return {self.mask: ((length,), 'bool'), self.codes: ((length,), 'int32')}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """Per example what the two objectives say of the fused tokens."""
        image = encode(self.image_tower, self.image, masked=self.mask)
        text = encode(self.text_tower, self.text)
        fusion = encode.part(self.fusion)
        joint = fusion(fusion.read(image), fusion.read(text), text_mask=text.mask_BL, keys_B=encode.keys('masked_pair'))
        length = image.tokens_BLD.shape[1]
        fused = {self.image: Encoded(None, joint.tokens_BLD[:, 1:1 + length]), self.text: Encoded(None, joint.tokens_BLD[:, 1 + length:])}

        def encode_fused(tower, key, **options):
            return fused[key]
        return dict(patches=self.patches.features(encode_fused, batch), words=self.words.features(encode_fused, batch))

    def loss(self, features: Mapping[str, Mapping[str, jax.Array]], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Over the global batch: a scalar; ``patch_loss``, ``patch_accuracy``, ``word_loss``, ``word_accuracy``."""
        image_loss, image_metrics = self.patches.loss(features['patches'])
        text_loss, text_metrics = self.words.loss(features['words'])
        told = {'patch_loss': image_loss, 'patch_accuracy': image_metrics['accuracy'], 'word_loss': text_loss,
                'word_accuracy': text_metrics['accuracy']}
        return self.image_weight * image_loss + self.text_weight * text_loss, jax.lax.stop_gradient(told)
