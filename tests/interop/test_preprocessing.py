"""Pixels against transformers and open_clip on odd images; and pixels and ids of photos and captions, if BIGVLM_PHOTOS names some:

    BIGVLM_PHOTOS='DIR/val-*.tar' python -m pytest -s -m parity tests/interop/test_preprocessing.py -k photos     # webdataset's tars

Ours is uint8 after the data's ops; towers divide by 255 and apply mean and std. What differs: PyTorch's scaling of uint8, which
transformers uses where there is torchvision, rounds otherwise than Pillow's: by one level, on up to a hundredth of most images' values.
JPEGs in CMYK become RGB by libjpeg-turbo here and by Pillow there: by one level, on all values. open_clip scales pictures before it makes
RGB of them and drops transparency; ours, like transformers, puts white behind it first (CONVERTED).
"""

import io
import json
import os

import numpy as np
import pytest
import torch_models
from PIL import Image

from bigvlm.core import parts
from bigvlm.data.ops.decode import pixels
from bigvlm.data.sources.webdataset import Webdataset
from bigvlm.data.tokenizers import sentencepiece, wordpiece
from bigvlm.interop import hf, image_processor, tokenizer_files
from bigvlm.interop.hf import _images
from tests.interop import odd

pytestmark = pytest.mark.parity
SIDE = 32
IMAGES = odd.images()
CONVERTED = {'alpha', 'gray_alpha', 'palette', 'palette_alpha', 'bits', 'cmyk'}


def prepared(image_ops, data):
    example = dict(image=pixels(data))
    for spec in image_ops:
        example = parts.build('bigvlm.data.ops', spec, 'ops')(example, np.random.default_rng(0))
    return example['image']


def difference(ours_HWC, theirs_CHW, mean=(0., 0., 0.), std=(1., 1., 1.)):
    """Of every value, in levels of 255."""
    theirs_HWC = np.einsum('chw->hwc', np.asarray(theirs_CHW, np.float64)) * np.array(std) + np.array(mean)
    return np.abs(ours_HWC - 255 * theirs_HWC)


def assert_close(differences):
    """At least 99.9 % of each image's values within one level; of CMYK, where two roundings come together, all within two."""
    assert differences
    far = {name: (found > 1 + 1e-3).mean() for name, found in differences.items() if name != 'cmyk'}
    assert max(far.values()) <= 1e-3, {name: share for name, share in far.items() if share > 1e-3}
    assert max(found.max() for found in differences.values()) < 2 + 1e-3


def of_transformers(folder, backend):
    processor = torch_models.transformers().AutoImageProcessor.from_pretrained(folder, backend=backend)
    return lambda data: processor(Image.open(io.BytesIO(data)), return_tensors='np')['pixel_values'][0]


def groups(mean=(.48, .45, .4), std=(.26, .25, .27)):
    return dict(towers=dict(image=dict(name='vit', mean=mean, std=std)))


WRITTEN = [('clip', dict(crop='center', rounding='floor')), ('clip', dict(crop='squash', method='bilinear')),
           ('chinese_clip', dict(crop='center', rounding='floor', method='bilinear')), ('siglip', dict(crop='squash')),
           ('siglip', dict(crop='center', rounding='floor')), ('vit', dict(crop='squash', method='bilinear')),
           ('swin', dict(crop='squash'))]


@pytest.mark.parametrize('backend', ['torchvision', 'pil'])
@pytest.mark.parametrize('model_type, op', WRITTEN)
def test_files_give_transformers_our_pixels(model_type, op, backend, tmp_path):
    ops, tower = (dict(name='resize', size=SIDE, **op),), groups()
    assert image_processor.write(tmp_path, tower, model_type, ops) == ()
    theirs = of_transformers(tmp_path, backend)
    normal = tower['towers']['image']
    found = {name: difference(prepared(ops, data), theirs(data), normal['mean'], normal['std']) for name, data in IMAGES.items()}
    if backend == 'pil':
        assert {name for name, x in found.items() if x.max() > 1e-3} <= {'cmyk'}
    assert_close(found)
    back, fields = _images.prepare(json.loads((tmp_path / image_processor.FILE).read_text()), SIDE, hf._module(model_type).IMAGES)
    assert fields == dict(mean=normal['mean'], std=normal['std'])
    assert dict(method='bicubic') | dict(back[0]) == dict(method='bicubic') | ops[0]


@pytest.mark.parametrize('model_type, name', [('clip', 'CLIPImageProcessor'), ('chinese_clip', 'ChineseCLIPImageProcessor'),
                                              ('siglip', 'SiglipImageProcessor'), ('vit', 'ViTImageProcessor')])
def test_transformers_processors_are_read(model_type, name, tmp_path):
    """As their own class prepares images with nothing but a size; some of them take RGB only."""
    transformers, usual = torch_models.transformers(), hf._module(model_type).IMAGES
    size = dict(size=dict(shortest_edge=SIDE), crop_size=SIDE) if usual.crop == 'center' else dict(size=dict(height=SIDE, width=SIDE))
    getattr(transformers, name)(**size).save_pretrained(tmp_path)
    theirs = of_transformers(tmp_path, 'torchvision')
    for given in (json.loads((tmp_path / image_processor.FILE).read_text()), {}):
        ops, normal = _images.prepare(given, SIDE, usual)
        rgb = {name: data for name, data in IMAGES.items() if Image.open(io.BytesIO(data)).mode == 'RGB'}
        assert len(rgb) > 10
        assert_close({name: difference(prepared(ops, data), theirs(data), **normal) for name, data in rgb.items()})


CROPS = {'shortest': dict(crop='center', rounding='nearest'), 'squash': dict(crop='squash'), 'longest': dict(crop='pad', fill=37)}


def of_open_clip(side, mode, method='bicubic'):
    open_clip = torch_models.load('open_clip')
    return open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(
        size=side, resize_mode=mode, interpolation=method, fill_color=37, mean=(0., 0., 0.), std=(1., 1., 1.)), is_train=False)


@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('mode', CROPS)
def test_ops_give_open_clips_pixels(mode, method):
    ops, theirs = (dict(name='resize', size=SIDE, method=method, **CROPS[mode]),), of_open_clip(SIDE, mode, method)
    for name, data in IMAGES.items():
        ours = prepared(ops, data)
        assert difference(ours, theirs(Image.fromarray(pixels(data)))).max() < 1e-3, name
        stored = difference(ours, theirs(Image.open(io.BytesIO(data))))
        assert (stored.max() < 1e-3) == (name not in CONVERTED), name


def test_the_shorter_side_may_be_scaled_to_more_than_the_cut():
    """timm's crop_pct."""
    transforms = torch_models.load('torchvision').transforms
    theirs = transforms.Compose([transforms.Resize(37, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(SIDE),
                                 transforms.ToTensor()])
    ops = (dict(name='resize', size=SIDE, rounding='nearest', shorter=37),)
    for name, data in IMAGES.items():
        assert difference(prepared(ops, data), theirs(Image.fromarray(pixels(data)))).max() < 1e-3, name


def test_what_transformers_does_otherwise_is_said(tmp_path):
    notes = image_processor.write(tmp_path, groups(), 'clip', (dict(name='resize', size=SIDE),))
    assert len(notes) == 1 and "rounding='exact'" in notes[0]
    far = difference(prepared((dict(name='resize', size=SIDE),), IMAGES['odd']), of_open_clip(SIDE, 'shortest')(
        Image.open(io.BytesIO(IMAGES['odd']))))
    assert (far > 1).mean() > .2
    assert 'two by two' in image_processor.differences((dict(name='resize', crop='squash', antialias=False),), 'floor', 'transformers')[0]


# Photos and captions of the user's.

PHOTOS, PHOTO_SIDE = 200, 160


@pytest.fixture(scope='module')
def samples():
    """[(encoded image, captions)] of the first of the tars' samples."""
    if not (pattern := os.environ.get('BIGVLM_PHOTOS')):
        pytest.skip('BIGVLM_PHOTOS names no tars (webdataset) of photos and captions')
    source = Webdataset(files=pattern)
    found = [source[i] for i in range(min(PHOTOS, len(source)))]
    return [(sample['image'], sample['captions']) for sample in found]


@pytest.fixture(scope='module')
def photos(samples):
    """The photos as they are, and regions of odd sizes of them, since many collections are of squares."""
    rng, found = np.random.default_rng(0), {}
    for i, (data, _) in enumerate(samples):
        image_HWC = pixels(data)
        height, width = rng.integers(40, 1 + np.array(image_HWC.shape[:2]))
        file = io.BytesIO()
        Image.fromarray(image_HWC[:height, :width]).save(file, 'PNG')
        found |= {f'{i} whole': data, f'{i} region': file.getvalue()}
    return found


@pytest.mark.parametrize('library', ['torchvision', 'pil', 'shortest', 'squash', 'longest'])
def test_photos_have_their_pixels(library, photos, tmp_path):
    if library in CROPS:
        op, theirs = CROPS[library], of_open_clip(PHOTO_SIDE, library)

        def other(data):
            return theirs(Image.open(io.BytesIO(data)))
    else:
        op = dict(crop='center', rounding='floor')
        image_processor.write(tmp_path, groups((0., 0., 0.), (1., 1., 1.)), 'clip', (dict(name='resize', size=PHOTO_SIDE, **op),))
        other = of_transformers(tmp_path, library)
    ops = (dict(name='resize', size=PHOTO_SIDE, **op),)
    found = {name: difference(prepared(ops, data), other(data)) for name, data in photos.items()}
    every = np.concatenate([x.ravel() for x in found.values()])
    print(f'{library}: {len(found)} images, {(every < 1e-3).mean():.4%} of the values the same, {(every < 1 + 1e-3).mean():.4%} within one '
          f'level, the largest difference {every.max():.2f} levels')
    assert (every > 1 + 1e-3).mean() <= 1e-3


@pytest.mark.parametrize('kind', ['open_clip', 'clip', 'siglip', 'bert'])
def test_photos_captions_have_their_ids(kind, samples, tmp_path):
    captions = [caption for _, several in samples for caption in several]
    merges = torch_models.load('open_clip').tokenizer.default_bpe()
    spec = dict(name='clip_bpe', model=merges) if kind == 'open_clip' else dict(name='clip_bpe', model=merges, clean='nfc', pad='eot')
    if kind == 'siglip':
        sentencepiece.train(captions, 1000, tmp_path / 'captions.model')
        spec = dict(name='sentencepiece', model=str(tmp_path / 'captions.model'), canonicalize=True, pad='eos')
    if kind == 'bert':
        wordpiece.train(captions, 1000, tmp_path / 'captions.txt')
        spec = dict(name='wordpiece', model=str(tmp_path / 'captions.txt'))
    ours = parts.build('bigvlm.data.tokenizers', spec, 'tokenizer', corpus=None)
    if kind == 'open_clip':
        theirs = torch_models.load('open_clip').get_tokenizer('ViT-B-32')(captions).numpy()
    else:
        (tmp_path / 'config.json').write_text(json.dumps(dict(model_type=kind)))
        tokenizer_files.write(ours, tmp_path, kind, 77)
        tokenizer = torch_models.transformers().AutoTokenizer.from_pretrained(tmp_path)
        theirs = np.array(tokenizer(captions, padding='max_length', truncation=True)['input_ids'])
    same = (ours(captions, 77) == theirs).all(axis=1)
    print(f'{kind}: the same ids for {same.sum()} of {len(captions)} captions')
    assert same.all()
