"""Names of the ViT's arrays in other libraries' files, as templates of core/foreign.py."""

from bigvlm.core.foreign import Theirs


# big_vision (google-research/big_vision, models/vit.py) as it names arrays today, blocks one by one; older files come under these
# names through interop/_big_vision_files.py, which also says what ``cls_position`` is. Kernels lead with their inputs; those of
# attention have axes of heads (n).
def big_vision_attention(ours: str, theirs: str) -> dict[str, Theirs]:
    return {**{f'{ours}/{name}/kernel': Theirs(f'{theirs}/{name}/kernel', 'w n h -> w (n h)') for name in ('query', 'key', 'value')},
            **{f'{ours}/{name}/bias': Theirs(f'{theirs}/{name}/bias', 'n h -> (n h)') for name in ('query', 'key', 'value')},
            f'{ours}/out/kernel': Theirs(f'{theirs}/out/kernel', 'n h w -> (n h) w'), f'{ours}/out/bias': Theirs(f'{theirs}/out/bias')}


def big_vision_dense(ours: str, theirs: str) -> dict[str, Theirs]:
    return {f'{ours}/kernel': Theirs(f'{theirs}/kernel', 'i o -> i o'), f'{ours}/bias': Theirs(f'{theirs}/bias')}


def big_vision_norm(ours: str, theirs: str) -> dict[str, Theirs]:
    return {f'{ours}/{name}': Theirs(f'{theirs}/{name}') for name in ('scale', 'bias')}


def big_vision_encoder(theirs: str) -> dict[str, Theirs]:
    ours, block = 'encoder/blocks', theirs + '/encoderblock_{}'
    return {**big_vision_norm(f'{ours}/norm1', f'{block}/LayerNorm_0'),
            **big_vision_attention(f'{ours}/attention', f'{block}/MultiHeadDotProductAttention_0'),
            **big_vision_norm(f'{ours}/norm2', f'{block}/LayerNorm_1'),
            **big_vision_dense(f'{ours}/mlp/fc1', f'{block}/MlpBlock_0/Dense_0'),
            **big_vision_dense(f'{ours}/mlp/fc2', f'{block}/MlpBlock_0/Dense_1'),
            **big_vision_norm('encoder/norm', f'{theirs}/encoder_norm')}


BIG_VISION = {
    'patch_embed/kernel': Theirs('embedding/kernel', 'p q c w -> (p q c) w'), 'patch_embed/bias': 'embedding/bias',
    'position': Theirs('pos_embedding', '1 l w -> l w'),
    'class_token': Theirs('cls', '1 1 w -> w'), 'class_position': Theirs('cls_position', '1 1 w -> w'),
    **big_vision_encoder('Transformer'),
    'map/probe': 'MAPHead_0/probe',
    **big_vision_attention('map/attention', 'MAPHead_0/MultiHeadDotProductAttention_0'),
    **big_vision_norm('map/norm', 'MAPHead_0/LayerNorm_0'),
    **big_vision_dense('map/mlp/fc1', 'MAPHead_0/MlpBlock_0/Dense_0'), **big_vision_dense('map/mlp/fc2', 'MAPHead_0/MlpBlock_0/Dense_1'),
    **big_vision_dense('out', 'head'),
}

# Hugging Face's CLIP, whose text blocks have the same names, SigLIP and ViT. Linear layers have a bias unless the tower has none.
def hf_linear(ours: str, theirs: str) -> dict[str, str]:
    return {f'{ours}/kernel': f'{theirs}.weight', f'{ours}/bias': f'{theirs}.bias'}


def hf_norm(ours: str, theirs: str) -> dict[str, str]:
    return {f'{ours}/scale': f'{theirs}.weight', f'{ours}/bias': f'{theirs}.bias'}


_BLOCKS, _LAYER, _HF_LAYER = 'encoder/blocks', 'encoder.layers.{}', 'encoder.layer.{}'
HF_BLOCKS = {
    **hf_norm(f'{_BLOCKS}/norm1', f'{_LAYER}.layer_norm1'), **hf_norm(f'{_BLOCKS}/norm2', f'{_LAYER}.layer_norm2'),
    **hf_linear(f'{_BLOCKS}/attention/query', f'{_LAYER}.self_attn.q_proj'),
    **hf_linear(f'{_BLOCKS}/attention/key', f'{_LAYER}.self_attn.k_proj'),
    **hf_linear(f'{_BLOCKS}/attention/value', f'{_LAYER}.self_attn.v_proj'),
    **hf_linear(f'{_BLOCKS}/attention/out', f'{_LAYER}.self_attn.out_proj'),
    **hf_linear(f'{_BLOCKS}/mlp/fc1', f'{_LAYER}.mlp.fc1'), **hf_linear(f'{_BLOCKS}/mlp/fc2', f'{_LAYER}.mlp.fc2'),
}
HF_CLIP = {
    'patch_embed/kernel': Theirs('embeddings.patch_embedding.weight', 'w c p q -> (p q c) w'),
    'class_token': 'embeddings.class_embedding',
    'class_position': Theirs('embeddings.position_embedding.weight', '1 w -> w', row=0),
    'position': Theirs('embeddings.position_embedding.weight', row=1),
    **hf_norm('pre_norm', 'pre_layrnorm'), **HF_BLOCKS, **hf_norm('encoder/norm', 'post_layernorm'),
}
HF_SIGLIP = {
    'patch_embed/kernel': Theirs('embeddings.patch_embedding.weight', 'w c p q -> (p q c) w'),
    'patch_embed/bias': 'embeddings.patch_embedding.bias',
    'position': 'embeddings.position_embedding.weight',
    **HF_BLOCKS, **hf_norm('encoder/norm', 'post_layernorm'),
    'map/probe': 'head.probe',
    **{f'map/attention/{name}/{mine}': Theirs(f'head.attention.in_proj_{other}', part=(k, 3))
       for k, name in enumerate(('query', 'key', 'value')) for mine, other in (('kernel', 'weight'), ('bias', 'bias'))},
    **hf_linear('map/attention/out', 'head.attention.out_proj'), **hf_norm('map/norm', 'head.layernorm'),
    **hf_linear('map/mlp/fc1', 'head.mlp.fc1'), **hf_linear('map/mlp/fc2', 'head.mlp.fc2'),
}
# SigLIP 2 cuts patches before the model, in our order of pixels, so that their kernel is a matrix.
HF_SIGLIP2 = HF_SIGLIP | {'patch_embed/kernel': 'embeddings.patch_embedding.weight'}
# As files have them: in memory, transformers 5 calls these arrays otherwise.
HF_VIT = {
    'patch_embed/kernel': Theirs('embeddings.patch_embeddings.projection.weight', 'w c p q -> (p q c) w'),
    'patch_embed/bias': 'embeddings.patch_embeddings.projection.bias',
    'class_token': Theirs('embeddings.cls_token', '1 1 w -> w'),
    'class_position': Theirs('embeddings.position_embeddings', '1 1 w -> w', row=0),
    'position': Theirs('embeddings.position_embeddings', '1 l w -> l w', row=1),
    **hf_norm(f'{_BLOCKS}/norm1', f'{_HF_LAYER}.layernorm_before'), **hf_norm(f'{_BLOCKS}/norm2', f'{_HF_LAYER}.layernorm_after'),
    **{path: name for ours in ('query', 'key', 'value')
       for path, name in hf_linear(f'{_BLOCKS}/attention/{ours}', f'{_HF_LAYER}.attention.attention.{ours}').items()},
    **hf_linear(f'{_BLOCKS}/attention/out', f'{_HF_LAYER}.attention.output.dense'),
    **hf_linear(f'{_BLOCKS}/mlp/fc1', f'{_HF_LAYER}.intermediate.dense'), **hf_linear(f'{_BLOCKS}/mlp/fc2', f'{_HF_LAYER}.output.dense'),
    **hf_norm('encoder/norm', 'layernorm'),
}

# open_clip and OpenAI, whose text blocks have the same names (_text_names.py); attention is PyTorch's MultiheadAttention.
def torch_attention(ours: str, theirs: str) -> dict[str, str | Theirs]:
    return {**{f'{ours}/{name}/{mine}': Theirs(f'{theirs}.in_proj_{other}', part=(k, 3))
               for k, name in enumerate(('query', 'key', 'value')) for mine, other in (('kernel', 'weight'), ('bias', 'bias'))},
            **hf_linear(f'{ours}/out', f'{theirs}.out_proj')}


def open_clip_block(theirs: str, norm1: str = 'norm1', attention: str = 'attention', norm2: str = 'norm2', mlp: str = 'mlp',
                    ours: str = 'encoder/blocks') -> dict[str, str | Theirs]:
    return {**hf_norm(f'{ours}/{norm1}', f'{theirs}.ln_1'), **torch_attention(f'{ours}/{attention}', f'{theirs}.attn'),
            **hf_norm(f'{ours}/{norm2}', f'{theirs}.ln_2'), **hf_linear(f'{ours}/{mlp}/fc1', f'{theirs}.mlp.c_fc'),
            **hf_linear(f'{ours}/{mlp}/fc2', f'{theirs}.mlp.c_proj')}


OPEN_CLIP = {
    'patch_embed/kernel': Theirs('conv1.weight', 'w c p q -> (p q c) w'),
    'class_token': 'class_embedding',
    'class_position': Theirs('positional_embedding', '1 w -> w', row=0),
    'position': Theirs('positional_embedding', row=1),
    **hf_norm('pre_norm', 'ln_pre'), **open_clip_block('transformer.resblocks.{}'),
    **hf_norm('encoder/norm', 'ln_post'), **hf_norm('pooled_norm', 'ln_post'), **hf_norm('read/norm', 'ln_post'),
    'read/queries': 'attn_pool.query', **hf_norm('read/layer0_query_norm', 'attn_pool.ln_q'),
    **hf_norm('read/layer0_tokens_norm', 'attn_pool.ln_k'), **torch_attention('read/layer0_attention', 'attn_pool.attn'),
    'out/kernel': Theirs('proj', 'i o -> i o'),
}
# Where queries are of another width than the tokens, PyTorch keeps the three kernels apart, but not the biases.
OPEN_CLIP_APART = {f'read/layer0_attention/{name}/kernel': f'attn_pool.attn.{name[0]}_proj_weight' for name in ('query', 'key', 'value')}

# timm's VisionTransformer.
_TIMM_LAYER = 'blocks.{}'
TIMM = {
    'patch_embed/kernel': Theirs('patch_embed.proj.weight', 'w c p q -> (p q c) w'), 'patch_embed/bias': 'patch_embed.proj.bias',
    'class_token': Theirs('cls_token', '1 1 w -> w'),
    'class_position': Theirs('pos_embed', '1 1 w -> w', row=0), 'position': Theirs('pos_embed', '1 l w -> l w', row=1),
    **hf_norm('pre_norm', 'norm_pre'), **hf_norm(f'{_BLOCKS}/norm1', f'{_TIMM_LAYER}.norm1'),
    **{f'{_BLOCKS}/attention/{name}/{mine}': Theirs(f'{_TIMM_LAYER}.attn.qkv.{other}', part=(k, 3))
       for k, name in enumerate(('query', 'key', 'value')) for mine, other in (('kernel', 'weight'), ('bias', 'bias'))},
    **hf_linear(f'{_BLOCKS}/attention/out', f'{_TIMM_LAYER}.attn.proj'), **hf_norm(f'{_BLOCKS}/norm2', f'{_TIMM_LAYER}.norm2'),
    **hf_linear(f'{_BLOCKS}/mlp/fc1', f'{_TIMM_LAYER}.mlp.fc1'), **hf_linear(f'{_BLOCKS}/mlp/fc2', f'{_TIMM_LAYER}.mlp.fc2'),
    **hf_norm('encoder/norm', 'norm'), **hf_norm('pooled_norm', 'fc_norm'),
    'map/probe': 'attn_pool.latent', **hf_linear('map/attention/query', 'attn_pool.q'),
    **{f'map/attention/{name}/{mine}': Theirs(f'attn_pool.kv.{other}', part=(k, 2))
       for k, name in enumerate(('key', 'value')) for mine, other in (('kernel', 'weight'), ('bias', 'bias'))},
    **hf_linear('map/attention/out', 'attn_pool.proj'), **hf_norm('map/norm', 'attn_pool.norm'),
    **hf_linear('map/mlp/fc1', 'attn_pool.mlp.fc1'), **hf_linear('map/mlp/fc2', 'attn_pool.mlp.fc2'),
}
# Without a class token, or where that has no position.
TIMM_PATCHES = {'position': Theirs('pos_embed', '1 l w -> l w')}
