"""big_vision's models written once more in NumPy, and random files of theirs in each of the layouts that they were saved in.

A file here is {name: array} under the present names. B images or texts, L tokens, S of them read, W width, N heads, H head width,
P patch side, C colours.
"""

import numpy as np


def below(file, prefix):
    return {name.removeprefix(prefix): x for name, x in file.items() if name.startswith(prefix)}


# Forward passes, in the precision of the file.

def norm(x_BLW, file, eps=1e-6):
    x_BLW = x_BLW - x_BLW.mean(-1, keepdims=True)
    return x_BLW / np.sqrt((x_BLW ** 2).mean(-1, keepdims=True) + eps) * file['scale'] + file['bias']


def dense(x_BLW, file):
    return x_BLW @ file['kernel'] + file['bias']


def gelu(x):
    return .5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + .044715 * x ** 3)))


def mixed(query_BLNH, key_BSNH, value_BSNH, mask_BS=None):
    score_BNLS = np.einsum('blnh,bsnh->bnls', query_BLNH, key_BSNH) / np.sqrt(query_BLNH.shape[-1])
    if mask_BS is not None:
        score_BNLS = np.where(mask_BS[:, None, None], score_BNLS, -1e30)
    weight_BNLS = np.exp(score_BNLS - score_BNLS.max(-1, keepdims=True))
    return np.einsum('bnls,bsnh->blnh', weight_BNLS / weight_BNLS.sum(-1, keepdims=True), value_BSNH)


def attention(query_BLW, key_BSW, file):
    query, key, value = (np.einsum('blw,wnh->blnh', x, file[f'{name}/kernel']) + file[f'{name}/bias'] for name, x in (
        ('query', query_BLW), ('key', key_BSW), ('value', key_BSW)))
    return np.einsum('blnh,nhw->blw', mixed(query, key, value), file['out/kernel']) + file['out/bias']


def mlp(x_BLW, file):
    return dense(gelu(dense(x_BLW, below(file, 'Dense_0/'))), below(file, 'Dense_1/'))


def encoder(x_BLW, file):
    """-> (tokens after the last norm, those after each block)."""
    layers = []
    while f'encoderblock_{len(layers)}/LayerNorm_0/scale' in file:
        block = below(file, f'encoderblock_{len(layers)}/')
        y_BLW = norm(x_BLW, below(block, 'LayerNorm_0/'))
        x_BLW = x_BLW + attention(y_BLW, y_BLW, below(block, 'MultiHeadDotProductAttention_0/'))
        x_BLW = x_BLW + mlp(norm(x_BLW, below(block, 'LayerNorm_1/')), below(block, 'MlpBlock_0/'))
        layers.append(x_BLW)
    return norm(x_BLW, below(file, 'encoder_norm/')), layers


def map_head(x_BLW, file):
    probe_B1W = np.repeat(file['probe'], len(x_BLW), 0)
    x_B1W = attention(probe_B1W, x_BLW, below(file, 'MultiHeadDotProductAttention_0/'))
    return (x_B1W + mlp(norm(x_B1W, below(file, 'LayerNorm_0/')), below(file, 'MlpBlock_0/')))[:, 0]


def sincos(side, width):
    frequency = 1 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1))
    y_LF, x_LF = (np.outer(axis.ravel(), frequency) for axis in np.mgrid[:side, :side])
    return np.concatenate([np.sin(x_LF), np.cos(x_LF), np.sin(y_LF), np.cos(y_LF)], 1)


def vit(image_BHWC, file, head=True):
    """Pixels in [-1, 1] -> (embeddings, layers)."""
    kernel_PPCW = file['embedding/kernel']
    patch, side = len(kernel_PPCW), image_BHWC.shape[1] // len(kernel_PPCW)
    cut = image_BHWC[:, :side * patch, :side * patch].reshape(len(image_BHWC), side, patch, side, patch, 3)
    x_BLW = np.einsum('brpcqk,pqkw->brcw', cut, kernel_PPCW).reshape(len(image_BHWC), side * side, -1) + file['embedding/bias']
    x_BLW = x_BLW + (file['pos_embedding'] if 'pos_embedding' in file else sincos(side, x_BLW.shape[-1]))
    if 'cls' in file:
        first_11W = file['cls'] + file.get('cls_position', 0)
        x_BLW = np.concatenate([np.repeat(first_11W, len(x_BLW), 0), x_BLW], 1)
    x_BLW, layers = encoder(x_BLW, below(file, 'Transformer/'))
    pooled_BW = map_head(x_BLW, below(file, 'MAPHead_0/')) if 'MAPHead_0/probe' in file else x_BLW[:, 0] if 'cls' in file else x_BLW.mean(1)
    return (dense(pooled_BW, below(file, 'head/')) if head and 'head/kernel' in file else pooled_BW), layers


def text(ids_BL, file):
    x_BLW, layers = encoder(file['Embed_0/embedding'][ids_BL] + file['pos_embedding'], below(file, 'Encoder_0/'))
    return (dense(x_BLW[:, -1], below(file, 'head/')) if 'head/kernel' in file else x_BLW[:, -1]), layers


def bert(ids_BL, file):
    """Padding is 0; what its tokens hold means nothing."""
    inner = below(file, 'BertEncoder_0/')
    x_BLW = inner['embedder/embedders_token_ids/embedding'][ids_BL] + inner['embedder/embedders_segment_ids/embedding'][0] \
        + inner['embedder/embedders_position_ids/embedding'][:ids_BL.shape[1]]
    x_BLW, layers = norm(x_BLW, below(inner, 'layer_norm/'), 1e-12), []
    while f'encoder_block/layer_sequence/layers_{len(layers)}/mlp_block/layer_norm/scale' in inner:
        layer = below(inner, f'encoder_block/layer_sequence/layers_{len(layers)}/')
        split = (*x_BLW.shape[:2], -1, 64)
        query, key, value = (dense(x_BLW, below(layer, f'attention_block/attention_layer/{name}/')).reshape(split)
                             for name in ('query', 'key', 'value'))
        y_BLW = mixed(query, key, value, ids_BL != 0).reshape(x_BLW.shape)
        x_BLW = norm(x_BLW + dense(y_BLW, below(layer, 'attention_block/dense_layer/')), below(layer, 'attention_block/layer_norm/'), 1e-12)
        y_BLW = dense(gelu(dense(x_BLW, below(layer, 'mlp_block/mlp/dense_layer/'))), below(layer, 'mlp_block/dense_layer/'))
        x_BLW = norm(x_BLW + y_BLW, below(layer, 'mlp_block/layer_norm/'), 1e-12)
        layers.append(x_BLW)
    return (dense(x_BLW[:, 0], below(file, 'head/')) if 'head/kernel' in file else x_BLW[:, 0]), layers


def loss(image_BD, text_BD, file):
    image_BD, text_BD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image_BD, text_BD))
    logits_BB = image_BD @ text_BD.T * np.exp(file['t'])
    if 'b' in file:
        sign_BB = 2 * np.eye(len(logits_BB)) - 1
        return np.log1p(np.exp(-sign_BB * (logits_BB + file['b']))).sum(1).mean()
    return np.mean([np.log(np.exp(x).sum(1)).mean() - np.diag(x).mean() for x in (logits_BB, logits_BB.T)])


# Random files; every array is drawn. What blocks add keeps tokens near 1; the first are small, so that a norm's epsilon shows.

def draw(shapes, seed=0):
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        x = rng.normal(size=shape)
        inputs = np.prod(shape[:-1]) if name.endswith(('embedding/kernel', 'out/kernel')) else shape[0] if len(shape) > 1 else 1
        scale = {'kernel': inputs ** -.5, 'scale': .3, 'bias': .3}.get(name.rsplit('/')[-1], .5)
        scale *= .01 if 'embed' in name or 'cls' in name else 1
        found[name] = (x * scale + (1 if name.endswith('scale') else 0)).astype(np.float32)
    return found


def _norms(name, width):
    return {f'{name}/{kind}': (width,) for kind in ('scale', 'bias')}


def _dense(name, *shape):
    return {f'{name}/kernel': shape, f'{name}/bias': shape[1:]}


def _attention(name, width, heads):
    head = width // heads
    return {**{k: v for part in ('query', 'key', 'value') for k, v in _dense(f'{name}/{part}', width, heads, head).items()},
            f'{name}/out/kernel': (heads, head, width), f'{name}/out/bias': (width,)}


def _encoder(name, width, depth, heads, hidden):
    found = _norms(f'{name}/encoder_norm', width)
    for i in range(depth):
        block = f'{name}/encoderblock_{i}'
        found |= _norms(f'{block}/LayerNorm_0', width) | _norms(f'{block}/LayerNorm_1', width)
        found |= _attention(f'{block}/MultiHeadDotProductAttention_0', width, heads)
        found |= _dense(f'{block}/MlpBlock_0/Dense_0', width, hidden) | _dense(f'{block}/MlpBlock_0/Dense_1', hidden, width)
    return found


def vit_shapes(width, depth, heads, hidden, patch, side, pool, out=0, learned=True):
    found = {'embedding/kernel': (patch, patch, 3, width), 'embedding/bias': (width,),
             **_encoder('Transformer', width, depth, heads, hidden)}
    found |= {'pos_embedding': (1, side * side, width)} if learned else {}
    if pool == 'tok':
        found['cls'] = (1, 1, width)
    if pool == 'map':
        found |= {'MAPHead_0/probe': (1, 1, width), **_attention('MAPHead_0/MultiHeadDotProductAttention_0', width, heads),
                  **_norms('MAPHead_0/LayerNorm_0', width), **_dense('MAPHead_0/MlpBlock_0/Dense_0', width, hidden),
                  **_dense('MAPHead_0/MlpBlock_0/Dense_1', hidden, width)}
    return found | (_dense('head', width, out) if out else {})


def text_shapes(width, depth, heads, hidden, vocab, length, out=0):
    return {'Embed_0/embedding': (vocab, width), 'pos_embedding': (1, length, width), **_encoder('Encoder_0', width, depth, heads, hidden),
            **(_dense('head', width, out) if out else {})}


def bert_shapes(width, depth, hidden, vocab, out, rows=24):
    found = {f'embedder/embedders_{name}_ids/embedding': (n, width) for name, n in (('token', vocab), ('position', rows), ('segment', 2))}
    found |= _norms('layer_norm', width)
    for i in range(depth):
        layer = f'encoder_block/layer_sequence/layers_{i}'
        for name in ('query', 'key', 'value'):
            found |= _dense(f'{layer}/attention_block/attention_layer/{name}', width, width)
        found |= _dense(f'{layer}/attention_block/dense_layer', width, width) | _norms(f'{layer}/attention_block/layer_norm', width)
        found |= _dense(f'{layer}/mlp_block/mlp/dense_layer', width, hidden) | _dense(f'{layer}/mlp_block/dense_layer', hidden, width)
        found |= _norms(f'{layer}/mlp_block/layer_norm', width)
    return {**{f'BertEncoder_0/{name}': shape for name, shape in found.items()}, **_dense('head', width, out)}


def two_towers(image, text, bias):
    return {**{f'img/{name}': x for name, x in image.items()}, **{f'txt/{name}': x for name, x in text.items()}, 't': (1,),
            **({'b': (1,)} if bias else {})}


# Layouts.

def stacked(file):
    """As lax.scan over the blocks has it."""
    found = {}
    for name, x in file.items():
        if '/encoderblock_' not in name:
            found[name] = x
        elif '/encoderblock_0/' in name:
            layers = sum(other.partition('/encoderblock_')[2].partition('/')[2] == name.partition('/encoderblock_')[2].partition('/')[2]
                         and other.startswith(name.partition('encoderblock_')[0]) for other in file)
            found[name.replace('encoderblock_0', 'encoderblock')] = np.stack(
                [file[name.replace('encoderblock_0', f'encoderblock_{i}')] for i in range(layers)])
    return found


def augreg(file):
    """As flax before linen numbered a block's modules, positions inside the encoder, after that of the class token."""
    found = {}
    for name, x in file.items():
        if 'encoderblock_' in name:
            for new, old in (('LayerNorm_1', 'LayerNorm_2'), ('MultiHeadDotProductAttention_0', 'MultiHeadDotProductAttention_1'),
                             ('MlpBlock_0', 'MlpBlock_3')):
                name = name.replace(f'/{new}/', f'/{old}/')
        tower = name.removesuffix('pos_embedding')
        if name.endswith('pos_embedding') and tower + 'cls' in file:
            name, x = f'{tower}Transformer/posembed_input/pos_embedding', np.concatenate([file[tower + 'cls_position'], x], 1)
        if not name.endswith('cls_position'):
            found[name] = x
    return found
