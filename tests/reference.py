"""What towers compute, written again in NumPy float64 with plain loops, and how to compare with it.

Nothing here is shared with bigvlm but the names of parameters. B examples, L tokens, W width; one example's arrays have
no B. Gradients come from central differences of these formulas, one random direction per parameter leaf: a wrong or
missing term in any leaf's gradient changes its slope.
"""

import math

import numpy as np

from bigvlm.nn.sizes import dims


def flat(tree, prefix=''):
    """{path: leaf} of nested dicts."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f'{prefix}{key}/') if hasattr(value, 'items') else {f'{prefix}{key}': value}
    return found


def nested(leaves):
    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def randomise(tree, seed=0, spread=.4):
    """Parameters of the same shapes, none at its initial value: biases and norms would hide a dropped term there."""
    rng = np.random.default_rng(seed)
    return nested({path: ((path.endswith('scale')) + spread * rng.normal(size=leaf.shape)).astype(np.float32)
                   for path, leaf in sorted(flat(tree).items())})


def float64(tree):
    return nested({path: np.asarray(leaf, np.float64) for path, leaf in flat(tree).items()})


def relative(found, expected):
    """The largest error, relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def slope_errors(loss, params, gradient, step=1e-5, seed=1):
    """{path: error of <gradient, direction>} against central differences of ``loss(params)``, one direction per leaf.

    The unit is the length of the leaf's gradient and a thousandth of the whole gradient's: keys' biases have none.
    """
    params, gradient = flat(float64(params)), flat(gradient)
    assert params.keys() == gradient.keys()
    rng = np.random.default_rng(seed)
    whole = math.sqrt(sum(float(np.square(np.asarray(g, np.float64)).sum()) for g in gradient.values()))
    errors = {}
    for path, leaf in params.items():
        direction = rng.normal(size=leaf.shape)
        direction /= np.linalg.norm(direction)
        ahead, behind = (loss(nested({**params, path: leaf + sign * step * direction})) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        own = np.asarray(gradient[path], np.float64)
        errors[path] = abs(float((own * direction).sum()) - slope) / (np.linalg.norm(own) + 1e-3 * whole)
    return errors


# Layers.

def gelu(x):
    return np.vectorize(lambda v: v / 2 * (1 + math.erf(v / math.sqrt(2))))(x)


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + .044715 * x ** 3)))


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def relu(x):
    return np.maximum(x, 0)


ACTIVATIONS = dict(gelu=gelu, gelu_tanh=gelu_tanh, quick_gelu=quick_gelu, relu=relu)


def dense(x, p):
    return x @ p['kernel'] + p.get('bias', 0.)


def layer_norm(x, p, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * p['scale'] + p['bias']


def attention(query_LW, key_LW, p, heads, causal=False, mask_L=None):
    """One example; each query looks at the keys it may see, one head after the other."""
    query, key, value = dense(query_LW, p['query']), dense(key_LW, p['key']), dense(key_LW, p['value'])
    size = query.shape[1] // heads
    mixed = np.zeros_like(query)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for t in range(len(query)):
            seen = [s for s in range(len(key)) if (s <= t or not causal) and (mask_L is None or mask_L[s])]
            logits = np.array([query[t, own] @ key[s, own] / math.sqrt(size) for s in seen])
            weights = np.exp(logits - logits.max())
            mixed[t, own] = sum(w * value[s, own] for w, s in zip(weights / weights.sum(), seen))
    return dense(mixed, p['out'])


def mlp(x, p, activation='gelu_tanh'):
    return dense(ACTIVATIONS[activation](dense(x, p['fc1'])), p['fc2'])


def layer_of(blocks, i):
    """Layer ``i`` of parameters stacked over layers."""
    return nested({path: leaf[i] for path, leaf in flat(blocks).items()})


def transformer(x_LW, p, heads, depth, activation='gelu_tanh', eps=1e-6, causal=False, mask_L=None):
    """(tokens after the last norm, [tokens after each block])."""
    layers = []
    for i in range(depth):
        block = layer_of(p['blocks'], i)
        normed = layer_norm(x_LW, block['norm1'], eps)
        x_LW = x_LW + attention(normed, normed, block['attention'], heads, causal, mask_L)
        x_LW = x_LW + mlp(layer_norm(x_LW, block['norm2'], eps), block['mlp'], activation)
        layers.append(x_LW)
    return layer_norm(x_LW, p['norm'], eps), layers


# Image towers.

def sincos2d(rows, columns, width):
    """MoCo v3: a quarter each of sines and cosines of the column, then of the row; wavelengths 2π … 2π·10000."""
    quarter = width // 4
    table = []
    for row in range(rows):
        for column in range(columns):
            angles = [(place / 10_000 ** (f / (quarter - 1))) for place in (column, row) for f in range(quarter)]
            across, down = angles[:quarter], angles[quarter:]
            table.append([*map(math.sin, across), *map(math.cos, across), *map(math.sin, down), *map(math.cos, down)])
    return np.array(table)


def resize_matrix(old, new):
    """[new, old] weights of bilinear interpolation with pixel centres at half integers, widened when shrinking."""
    ratio = old / new
    matrix = np.zeros((new, old))
    for i in range(new):
        for j in range(old):
            distance = abs((i + .5) * ratio - (j + .5)) / max(1., ratio)
            matrix[i, j] = max(0., 1. - distance)
        matrix[i] /= matrix[i].sum()
    return matrix


def resample(table_LW, stored, wanted):
    grid = table_LW.reshape(*stored, -1)
    down, across = (resize_matrix(old, new) for old, new in zip(stored, wanted))
    resized = np.einsum('ir,jc,rcw->ijw', down, across, grid)
    return resized.reshape(wanted[0] * wanted[1], -1)


def patches(image_HWC, patch, mean, std):
    """One row of pixels (row, column, colour) per patch, normalised; patches in reading order."""
    scaled = image_HWC.astype(np.float64) / 255
    found = []
    for top in range(0, image_HWC.shape[0], patch):
        for left in range(0, image_HWC.shape[1], patch):
            pixels = []
            for y in range(patch):
                for x in range(patch):
                    pixels += [(scaled[top + y, left + x, c] - mean[c]) / std[c] for c in range(3)]
            found.append(pixels)
    return np.array(found)


def map_head(x_LW, p, heads, eps):
    """Attention pooling with one probe, then a residual MLP."""
    pooled = attention(p['probe'][0], x_LW, p['attention'], heads)
    return (pooled + mlp(layer_norm(pooled, p['norm'], eps), p['mlp']))[0]


def vit(image_HWC, p, tower):
    """(pooled, tokens, [layers]) of one image by the fields of ``tower``."""
    _, depth, _, heads = dims(tower)
    grid = tuple(n // tower.patch for n in image_HWC.shape[:2])
    x_LW = dense(patches(image_HWC, tower.patch, tower.mean, tower.std), p['patch_embed'])
    stored = (tower.image // tower.patch,) * 2
    if tower.position == 'sincos2d':
        x_LW = x_LW + sincos2d(*grid, x_LW.shape[1])
    else:
        x_LW = x_LW + resample(p['position'], stored, grid)
    if tower.pool == 'cls':
        token = p['class_token'] + (p['class_position'] if tower.position == 'learned' else 0.)
        x_LW = np.concatenate([token[None], x_LW])
    if tower.pre_norm:
        x_LW = layer_norm(x_LW, p['pre_norm'], tower.norm_eps)
    tokens, layers = transformer(x_LW, p['encoder'], heads, depth, tower.activation, tower.norm_eps)
    if tower.pool == 'cls':
        pooled = tokens[0]
    elif tower.pool == 'gap':
        pooled = tokens.mean(0)
    else:
        pooled = map_head(tokens, p['map'], heads, tower.norm_eps)
    return (dense(pooled, p['out']) if tower.out_dim else pooled), tokens, layers


# Text towers.

def text(ids_L, p, tower):
    """(pooled, tokens, [layers]) of one text by the fields of ``tower``."""
    _, depth, _, heads = dims(tower)
    real_L = [int(i) != tower.pad_id for i in ids_L]
    x_LW = np.array([p['embed']['embedding'][i] + p['position'][at] for at, i in enumerate(ids_L)])
    tokens, layers = transformer(x_LW, p['encoder'], heads, depth, tower.activation, tower.norm_eps, tower.causal,
                                 real_L if tower.mask_padding else None)
    if tower.pool == 'eot':
        pooled = tokens[list(ids_L).index(tower.eot_id)]
    elif tower.pool == 'argmax':
        pooled = tokens[list(ids_L).index(max(ids_L))]
    elif tower.pool in ('first', 'last'):
        pooled = tokens[0 if tower.pool == 'first' else len(tokens) - 1]
    else:
        pooled = getattr(np, tower.pool)(tokens[real_L], axis=0)
    return (dense(pooled, p['out']) if tower.out_dim else pooled), tokens, layers
