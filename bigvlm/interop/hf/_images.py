"""How transformers' image processors prepare an image, as our ops and a tower's mean and std, and back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from bigvlm.core.foreign import WeightsError
from bigvlm.interop.hf import _common

_METHODS = {2: 'bilinear', 3: 'bicubic'}  # Pillow's numbers
_FILE = 'preprocessor_config.json'


@dataclasses.dataclass(frozen=True)
class Images:
    """What a model's processor does unless its file says otherwise.

    kind: the processor's name. crop: 'center' (the shorter side is scaled, the middle cut out) or 'squash'. mean, std: per colour.
    """
    kind: str
    crop: str
    method: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP = Images('CLIPImageProcessor', 'center', 'bicubic', (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711))
CHINESE_CLIP = dataclasses.replace(CLIP, kind='ChineseCLIPImageProcessor')
SIGLIP = Images('SiglipImageProcessor', 'squash', 'bicubic', (.5, .5, .5), (.5, .5, .5))
VIT = Images('ViTImageProcessor', 'squash', 'bilinear', (.5, .5, .5), (.5, .5, .5))


def prepare(processor: Mapping[str, Any], side: int, default: Images) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """(ops, fields 'mean' and 'std' of the tower) by the processor's file, for a model of images of ``side``.

    Raises:
        WeightsError: it does what no op of ours does, or makes images of another size.
    """
    try:
        return _prepare({key: value for key, value in processor.items() if value is not None}, side, default)
    except WeightsError as e:
        raise WeightsError(f'{_FILE}: {e}') from None


def _prepare(given: Mapping[str, Any], side: int, default: Images):
    _common.refuse(given, do_resize=(True,), do_rescale=(True,), do_pad=(False,), resample=tuple(_METHODS), crop_pct=(None,))
    if not math.isclose(given.get('rescale_factor', 1 / 255), 1 / 255, rel_tol=1e-4):
        raise WeightsError(f'rescale_factor: found {given["rescale_factor"]}; valid: 1/255')
    crop, found = _crop(given, side, default)
    if found != side:
        raise WeightsError(f'{"crop_size" if crop == "center" else "size"}: images of {found} pixels for a model of {side}')
    method = _METHODS[given['resample']] if 'resample' in given else default.method
    op = dict(name='resize', size=side, crop=crop, method=method)
    if crop == 'center':
        op['rounding'] = 'floor'
    normal = given.get('do_normalize', True)
    mean, std = (_colours(given, key, usual) if normal else plain for key, usual, plain in (
        ('image_mean', default.mean, (0., 0., 0.)), ('image_std', default.std, (1., 1., 1.))))
    return (op,), dict(mean=mean, std=std)


def _crop(given: Mapping[str, Any], side: int, default: Images) -> tuple[str, int]:
    """(our kind of crop, the side of what comes out)."""
    center = given.get('do_center_crop', default.crop == 'center')
    size = given.get('size', {'shortest_edge': side} if default.crop == 'center' else side)
    if isinstance(size, int):
        size = {'height': size, 'width': size} if default.crop == 'squash' else {'shortest_edge': size}
    cut = _square(given.get('crop_size', side), 'crop_size') if center else None
    if set(size) == {'shortest_edge'} and center and size['shortest_edge'] == cut:
        return 'center', cut
    if set(size) == {'height', 'width'} and cut in (None, size['height']):
        return 'squash', _square(size, 'size')
    raise WeightsError(f'size: found {size!r} with {f"a crop of {cut}" if center else "no crop"}; valid: a shortest_edge and a center '
                       'crop of the same size, or one height and width')


def _square(size: Any, key: str) -> int:
    if isinstance(size, Mapping) and set(size) == {'height', 'width'}:
        size = (size['height'], size['width'])
    return _common.side({key: size}, key)


def _colours(given: Mapping[str, Any], key: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    found = given.get(key, usual)
    if not isinstance(found, (list, tuple)) or len(found) != 3:
        raise WeightsError(f'{key}: found {found!r}; valid: one number for each of 3 colours')
    return tuple(float(x) for x in found)


def there(ops: tuple[Mapping[str, Any], ...], mean: tuple[float, ...], std: tuple[float, ...], default: Images) -> dict[str, Any]:
    """preprocessor_config.json of a model whose images are prepared by ``ops`` and a tower's ``mean`` and ``std``. What they do
    otherwise with the same settings (rounding, antialias) interop/image_processor.py tells.

    Raises:
        WeightsError: transformers' processors cannot do it.
    """
    if [op.get('name') for op in ops] != ['resize']:
        raise WeightsError(f'image_ops: found {[op.get("name") for op in ops]}; their processors can only do one resize')
    op = dict(size=224, crop='center', method='bicubic') | dict(ops[0])
    _common.refuse(op, 'resize', crop=('center', 'squash'), method=tuple(_METHODS.values()))
    side, center = op['size'], op['crop'] == 'center'
    found = dict(image_processor_type=default.kind if (default.crop == 'center') == center else (CLIP if center else SIGLIP).kind,
                 do_resize=True, size=dict(shortest_edge=side) if center else dict(height=side, width=side),
                 resample={method: number for number, method in _METHODS.items()}[op['method']],
                 do_center_crop=center, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
                 image_mean=list(mean), image_std=list(std), do_convert_rgb=True)
    return found | (dict(crop_size=dict(height=side, width=side)) if center else {})
