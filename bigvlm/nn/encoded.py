"""What every tower returns."""

from typing import Any

from flax import struct


@struct.dataclass
class Encoded:
    """Encodings of a batch. B examples, L tokens, D the pooled width, W the token width.

    Attributes:
        pooled_BD: one vector per example (projected, if the tower projects), not normalised.
        features_BD: the same before the tower's own projection; None where there is none to tell apart.
        tokens_BLD: one vector per token, after the last norm.
        mask_BL: True where a token is real (not padding); None if all are.
        layers: ``{index: tokens_BLD}`` after the blocks asked for; negative indices count from the end. -1, the tokens before
            the last norm, is always there from transformers.
    """
    pooled_BD: Any
    tokens_BLD: Any = None
    mask_BL: Any = None
    layers: Any = struct.field(default_factory=dict)
    features_BD: Any = None
