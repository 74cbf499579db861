"""Names of the text transformer's arrays in other libraries' files, as templates of core/foreign.py."""

from bigvlm.core.foreign import Theirs
from bigvlm.towers._vit_names import HF_BLOCKS, big_vision_dense, big_vision_encoder, hf_linear, hf_norm, open_clip_block

# big_vision (models/proj/image_text/text_transformer.py); see _vit_names.py.
BIG_VISION = {
    'embed/embedding': 'Embed_0/embedding', 'position': Theirs('pos_embedding', '1 l w -> l w'),
    **big_vision_encoder('Encoder_0'), **big_vision_dense('out', 'head'),
}

# Hugging Face's CLIP and SigLIP; the one has its projection outside of the tower, see interop/hf/clip.py, the other inside.
HF_CLIP = {
    'embed/embedding': 'embeddings.token_embedding.weight', 'position': 'embeddings.position_embedding.weight',
    **HF_BLOCKS, **hf_norm('encoder/norm', 'final_layer_norm'),
}
HF_SIGLIP = {**HF_CLIP, **hf_linear('out', 'head')}

# open_clip and OpenAI; the text decoder is CoCa's. A projection with a bias is a layer of its own there.
OPEN_CLIP = {
    'embed/embedding': 'token_embedding.weight', 'position': 'positional_embedding', 'class_token': 'cls_emb',
    **open_clip_block('transformer.resblocks.{}'), **hf_norm('encoder/norm', 'ln_final'),
    'out/kernel': Theirs('text_projection', 'i o -> i o'),
}
OPEN_CLIP_BIAS = hf_linear('out', 'text_projection')
OPEN_CLIP_DECODER = {
    **open_clip_block('resblocks.{}', ours='decoder/blocks'),
    **open_clip_block('cross_attn.{}', 'norm_cross', 'cross', 'norm_cross_mlp', 'mlp_cross', ours='decoder/blocks'),
    **hf_norm('decoder/blocks/norm_context', 'cross_attn.{}.ln_1_kv'),
    **hf_norm('decoder/norm', 'ln_final'), 'vocabulary/kernel': Theirs('text_projection', 'i o -> i o'),
}
