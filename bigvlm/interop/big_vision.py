"""Models of big_vision's and AugReg's .npz files: ViT, its text tower, SigLIP's and LiT's two towers, sized by their arrays.

There is no config file, so ``infer`` makes one of the fields of big_vision's own modules:

    image      width, depth, mlp_dim, num_heads, patch_size, posemb (learn, sincos2d), pool_type (tok, gap, map), cls_position (whether
               the class token has a position of its own: AugReg, LiT), num_classes (0: no projection), res (the side of images)
    text       width, depth, mlp_dim, num_heads, num_classes, vocab_size, length; positions and types of BERT
    text_model 'text_transformer' or 'bert'
    bias       whether the loss has one: sigmoid, else softmax

One tower alone has no other. What shapes do not tell: SigLIP's text is taken to pool its last token, BERT's heads to be 64 wide, its
texts to have LiT's 16 tokens, and images the usual side of their grid (27 patches of 14 are those of 384 pixels).
"""

import re
from collections.abc import Mapping
from typing import Any

from bigvlm.core import parts
from bigvlm.core.foreign import Theirs, Weights, WeightsError
from bigvlm.interop._big_vision_files import View, export, view
from bigvlm.interop.description import Description, Piece
from bigvlm.interop.weights import open_weights
from bigvlm.nn.sizes import dims
from bigvlm.towers import _text_names, _vit_names, bert

__all__ = ['describe', 'export', 'infer', 'open_model', 'theirs', 'view']

POOLS = {'tok': 'cls', 'gap': 'gap', 'map': 'map'}
POSITIONS = {'learn': 'learned', 'sincos2d': 'sincos2d'}
SIDES = (224, 256, 384, 512)  # of published models
HEAD, LIT_LENGTH = 64, 16
_BERT = 'BertEncoder_0/'
_IN_ALL = dict(remat='none', dtype='float32')
# What their modules are, in fields of our towers; other fields than these and those of _FREE have their defaults.
_FIXED: dict[str, dict[str, Any]] = {
    'vit': dict(pre_norm=False, patch_bias=True, qkv_bias=True, class_token=False, last_norm='tokens', mean=(.5, .5, .5), std=(.5, .5, .5),
                activation='gelu_tanh', norm_eps=1e-6, out_bias=True),
    'text': dict(causal=False, pool='last', mask_padding=False, class_token=False, activation='gelu_tanh', norm_eps=1e-6, out_bias=True),
    'bert': dict(first_position=0, pre_norm=False, pool='cls', pad_id=0, qkv_bias=True, activation='gelu_tanh', norm_eps=1e-12,
                 out_bias=True)}
_TRAINING = ('init_scheme', 'dropout', 'drop_path', 'remat', 'dtype', 'attention')  # change nothing of what is learned
_SIZED = ('size', 'width', 'depth', 'heads', 'mlp_dim', 'out_dim')
_FREE = {'vit': ('patch', 'image', 'trim', 'pool', 'queries', 'query_heads', 'query_width', 'class_position', 'position', 'patch_dropout'),
         'text': ('vocab', 'length', 'eot_id', 'pad_id'), 'bert': ('vocab', 'length', 'types')}


def open_model(place: str) -> tuple[Description, View]:
    """FILE, or FILE:img and FILE:txt for one of two towers."""
    match = re.fullmatch(r'(.+):(img|txt)', place)
    file, part = match.groups() if match else (place, '')
    weights = view(open_weights(file), part)
    return describe(infer(weights, heads=bool(part))), weights


def infer(weights: Weights, *, res: int = 0, heads: bool = False) -> dict[str, Any]:
    """The model of a file, see above. ``res``: the side of its images if it is not the usual one (needed with sincos2d positions at
    another than 224). ``heads``: whether the head of an image tower alone is its projection; a classifier's is left out.

    Raises:
        WeightsError: it is neither a ViT nor a text tower nor both.
    """
    if not isinstance(weights, View):
        weights = view(weights)
    shapes = {name: weights.shape(name) for name in weights.names()}
    two = any(name.startswith('img/') for name in shapes) and any(name.startswith('txt/') for name in shapes)
    found = _Shapes(weights.where, shapes)
    if two:
        return {'image': _vit(found, 'img/', True, res), **_text(found, 'txt/'), 'bias': 'b' in shapes}
    if 'embedding/kernel' in shapes:
        return {'image': _vit(found, '', heads, res)}
    if 'Embed_0/embedding' in shapes or any(name.startswith(_BERT) for name in shapes):
        return _text(found, '')
    raise WeightsError(f'{weights.where} is no model of big_vision that is known here: it has neither embedding/kernel (ViT), '
                       f'Embed_0/embedding or {_BERT} (text) nor img/ and txt/, but {", ".join(sorted(shapes)[:5])}')


class _Shapes:
    """{name: shape} of a file."""

    def __init__(self, where: str, shapes: Mapping[str, tuple[int, ...]]):
        self.where, self.shapes = where, shapes

    def of(self, name: str, dims: int) -> tuple[int, ...]:
        """Raises WeightsError where it is missing or has another number of dimensions."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != dims:
            found = 'is not there' if shape is None else f'is {list(shape)}'
            raise WeightsError(f'{self.where}: {name} {found}; an array of {dims} dimensions was expected')
        return shape

    def depth(self, block: str) -> int:
        found = [int(match[1]) for name in self.shapes if (match := re.match(re.escape(block) + r'_(\d+)/', name))]
        if not found:
            raise WeightsError(f'{self.where}: there is no {block}_0')
        return 1 + max(found)

    def encoder(self, name: str) -> dict[str, int]:
        block = f'{name}/encoderblock'
        width, heads, _ = self.of(f'{block}_0/MultiHeadDotProductAttention_0/query/kernel', 3)
        return dict(width=width, depth=self.depth(block), mlp_dim=self.of(f'{block}_0/MlpBlock_0/Dense_0/kernel', 2)[1], num_heads=heads)

    def head(self, tower: str) -> int:
        return self.of(f'{tower}head/kernel', 2)[1] if f'{tower}head/kernel' in self.shapes else 0


def _vit(found: _Shapes, tower: str, heads: bool, res: int) -> dict[str, Any]:
    rows, columns, colours, _ = found.of(f'{tower}embedding/kernel', 4)
    if rows != columns or colours != 3:
        raise WeightsError(f'{found.where}: {tower}embedding/kernel has patches of {rows}×{columns} in {colours} colours; a square and 3 '
                           'were expected')
    learned = f'{tower}pos_embedding' in found.shapes
    if learned:
        length = found.of(f'{tower}pos_embedding', 3)[1]
        side = round(length ** .5)
        if side * side != length or res and res // rows != side:
            raise WeightsError(f'{found.where}: {tower}pos_embedding has {length} positions, which are not those of a square'
                               + f' of {res} pixels in patches of {rows}' * bool(res))
        res = res or next((usual for usual in SIDES if usual // rows == side), side * rows)
    pool = 'map' if f'{tower}MAPHead_0/probe' in found.shapes else 'tok' if f'{tower}cls' in found.shapes else 'gap'
    return dict(**found.encoder(f'{tower}Transformer'), patch_size=rows, posemb='learn' if learned else 'sincos2d', pool_type=pool,
                cls_position=f'{tower}cls_position' in found.shapes, num_classes=found.head(tower) if heads else 0, res=res or 224)


def _text(found: _Shapes, tower: str) -> dict[str, Any]:
    if f'{tower}MAPHead_0/probe' in found.shapes:
        raise WeightsError(f'{found.where}: {tower}MAPHead_0 is there, but no text tower here pools by attention')
    if not any(name.startswith(tower + _BERT) for name in found.shapes):
        vocab, length = found.of(f'{tower}Embed_0/embedding', 2)[0], found.of(f'{tower}pos_embedding', 3)[1]
        text = dict(**found.encoder(f'{tower}Encoder_0'), num_classes=found.head(tower), vocab_size=vocab, length=length)
        return dict(text=text, text_model='text_transformer')
    embedder, layers = (f'{tower}{_BERT}{name}' for name in ('embedder/embedders', 'encoder_block/layer_sequence/layers'))
    vocab, width = found.of(f'{embedder}_token_ids/embedding', 2)
    if width % HEAD:
        raise WeightsError(f'{found.where}: a BERT of width {width} has no heads of {HEAD}')
    rows, types = (found.of(f'{embedder}_{name}_ids/embedding', 2)[0] for name in ('position', 'segment'))
    text = dict(width=width, depth=found.depth(layers), mlp_dim=found.of(f'{layers}_0/mlp_block/mlp/dense_layer/kernel', 2)[1],
                num_heads=width // HEAD, num_classes=found.head(tower), vocab_size=vocab, length=min(rows, LIT_LENGTH), positions=rows,
                types=types)
    return dict(text=text, text_model='bert')


def describe(config: Mapping[str, Any]) -> Description:
    """``config``: of ``infer`` or ``theirs``. Images are squashed to their side by big_vision's plain bilinear filter. There is no
    tokenizer: its file is not in an .npz (docs say which it is)."""
    towers: dict[str, Any] = {}
    pieces: list[Piece] = []
    image, text = config.get('image'), config.get('text')
    two = bool(image and text)
    if image:
        towers['image'], patch = _our_vit(image), image['patch_size']
        pieces.append(Piece('image/', _vit_names.BIG_VISION, 'img/' * two, dict(n=image['num_heads'], p=patch, q=patch)))
    if text:
        is_bert = config['text_model'] == 'bert'
        towers['text'] = _our_text(text, is_bert)
        templates = bert.BIG_VISION if is_bert else _text_names.BIG_VISION
        pieces.append(Piece('text/', templates, 'txt/' * two, dict(n=text['num_heads'])))
    found: dict[str, Any] = {'towers': towers}
    if two:
        found['objectives'] = {'match': dict(name='sigmoid', temperature=10., bias=-10.) if config['bias'] else
                               dict(name='contrastive', temperature=.1)}
        pieces.append(Piece('match/', {name: Theirs(name, '1 ->') for name in ('t', 'b')}))
    classifier = image and not two and not image['num_classes']
    ops = (dict(name='resize', size=image['res'], crop='squash', method='bilinear', antialias=False),) if image else ()
    return Description(found, tuple(pieces), ('head/.*', 'pre_logits/.*') if classifier else (), ops, None, text['length'] if text else 0)


def _sizes(spec: Mapping[str, Any]) -> dict[str, Any]:
    return dict(size='', width=spec['width'], depth=spec['depth'], heads=spec['num_heads'], mlp_dim=spec['mlp_dim'],
                out_dim=spec['num_classes'])


def _our_vit(spec: Mapping[str, Any]) -> dict[str, Any]:
    return dict(name='vit', **_sizes(spec), patch=spec['patch_size'], image=spec['res'], trim=bool(spec['res'] % spec['patch_size']),
                pool=POOLS[spec['pool_type']], class_position=spec['cls_position'], position=POSITIONS[spec['posemb']], **_FIXED['vit'],
                **_IN_ALL)


def _our_text(spec: Mapping[str, Any], is_bert: bool) -> dict[str, Any]:
    if is_bert:
        return dict(name='bert', **_sizes(spec), vocab=spec['vocab_size'], length=spec['positions'], types=spec['types'], **_FIXED['bert'],
                    **_IN_ALL)
    return dict(name='text', **_sizes(spec), vocab=spec['vocab_size'], length=spec['length'], **_FIXED['text'], **_IN_ALL)


# Ours as theirs.

def theirs(groups: Mapping[str, Any]) -> dict[str, Any]:
    """What ``describe`` makes a model of ours of, by a recipe's groups.

    Raises:
        WeightsError: no model of big_vision has this field, tower or objective.
    """
    found: dict[str, Any] = {}
    for name, spec in groups['towers'].items():
        kinds = {'image': ('vit',), 'text': ('text', 'bert')}.get(name, ())
        if spec['name'] not in kinds:
            raise WeightsError(f'towers.{name}: found {spec["name"]!r}; big_vision has image: vit, and text: text or bert')
        tower = parts.build('bigvlm.towers', spec, f'towers.{name}')
        _check_fixed(tower, spec['name'], f'towers.{name}')
        found |= _their_vit(tower) if name == 'image' else _their_text(tower, spec['name'])
    objectives = groups.get('objectives', {})
    if 'image' in found and 'text' in found:
        match = objectives.get('match', {})
        if match.get('name') not in ('sigmoid', 'contrastive') or len(objectives) > 1 or not match.get('learned', True):
            raise WeightsError(f'objectives: found {", ".join(objectives) or "none"}; big_vision has match alone, sigmoid or contrastive '
                               'with a learned temperature')
        found['bias'] = match['name'] == 'sigmoid'
    return found


def _check_fixed(tower, kind: str, where: str) -> None:
    for field, parameter in parts.fields(type(tower)).items():
        valid, found = _FIXED[kind].get(field, parameter.default), getattr(tower, field)
        free = field in (*_SIZED, *_TRAINING, *_FREE[kind]) or field == 'out_bias' and not tower.out_dim
        if not free and found != valid:
            raise WeightsError(f'{where}.{field}: found {found!r}; big_vision has {valid!r}')


def _their_sizes(tower) -> dict[str, Any]:
    width, depth, mlp_dim, heads = tower.dims() if hasattr(tower, 'dims') else dims(tower)
    return dict(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=heads, num_classes=tower.out_dim)


def _their_vit(tower) -> dict[str, Any]:
    pools = {ours: name for name, ours in POOLS.items()}
    if tower.pool not in pools:
        raise WeightsError(f'towers.image.pool: found {tower.pool!r}; big_vision has {", ".join(pools)}')
    posemb = {ours: name for name, ours in POSITIONS.items()}[tower.position]
    of_its_own = tower.pool == 'cls' and tower.position == 'learned' and tower.class_position
    return dict(image=dict(**_their_sizes(tower), patch_size=tower.patch, posemb=posemb, pool_type=pools[tower.pool],
                           cls_position=of_its_own, res=tower.image))


def _their_text(tower, name: str) -> dict[str, Any]:
    sizes = _their_sizes(tower) | dict(vocab_size=tower.vocab)
    if name == 'text':
        return dict(text=dict(**sizes, length=tower.length), text_model='text_transformer')
    if sizes['width'] != HEAD * sizes['num_heads'] or not tower.types:
        raise WeightsError(f'towers.text: found a BERT of width {sizes["width"]} with {sizes["num_heads"]} heads and {tower.types} types; '
                           f'big_vision has heads of {HEAD}, and a type at least')
    return dict(text=dict(**sizes, length=min(tower.length, LIT_LENGTH), positions=tower.length, types=tower.types), text_model='bert')
