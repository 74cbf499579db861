"""The sizes that transformers are published in, by name."""

from bigvlm.core.parts import RecipeError
from bigvlm.nn.transformer import choose

# (width, depth, MLP hidden width, heads): ViT paper, "Scaling ViT" (2106.04560), So400m from SoViT (2305.13035), H/G as open_clip.
SIZES = {
    'mu': (32, 1, 128, 2), 'Ti': (192, 12, 768, 3), 'S': (384, 12, 1536, 6), 'M': (512, 12, 2048, 8), 'B': (768, 12, 3072, 12),
    'L': (1024, 24, 4096, 16), 'So400m': (1152, 27, 4304, 16), 'H': (1280, 32, 5120, 16), 'g': (1408, 40, 6144, 16),
    'G': (1664, 48, 8192, 16),
}


def dims(part) -> tuple[int, int, int, int]:
    """(width, depth, MLP hidden width, heads) of a part with the fields ``size``, ``width``, ``depth``, ``mlp_dim``, ``heads``, of
    which those that are given override the size's. Raises RecipeError for what makes no transformer."""
    sizes = choose(SIZES, part.size, 'size') if part.size else (0, 0, 0, 0)
    width, depth, mlp_dim, heads = (own or size for own, size in zip((part.width, part.depth, part.mlp_dim, part.heads), sizes))
    if not (width and depth and heads):
        raise RecipeError(f'size: give one of {", ".join(SIZES)}, or width, depth and heads')
    if width % heads:
        raise RecipeError(f'heads: {heads} heads do not divide the width {width}')
    return width, depth, mlp_dim or 4 * width, heads
