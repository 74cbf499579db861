"""Zero-shot classification and retrieval of one exported model: our evaluators against models, preprocessing and tokenizers of open_clip and
transformers under CLIP_benchmark's definitions, which are written again here.

N images, M captions, C classes, T templates, D width.
"""

import io
import json
import tarfile

import numpy as np
import pytest
import torch_models
from PIL import Image, ImageDraw

from bigvlm import evaluate, prepared, recipe
from bigvlm.evals import prompts
from bigvlm.interop.source import open_source
from tests.interop import their_modules
from tools import convert

pytestmark = pytest.mark.parity

SIDE, LENGTH, COUNT, EACH = 48, 24, 40, 5
RIDGE = .3
COLORS = ('red', 'green', 'blue', 'yellow', 'white', 'black')
SHAPES = ('circle', 'square', 'ring', 'cross')
MODEL = dict(embed_dim=32, quick_gelu=True,
             vision_cfg=dict(image_size=SIDE, patch_size=8, width=48, layers=2, head_width=16),
             text_cfg=dict(context_length=LENGTH, vocab_size=49_408, width=32, heads=2, layers=2))
PREPROCESS = dict(size=SIDE, mode='RGB', mean=list(their_modules.MEAN), std=list(their_modules.STD), interpolation='bicubic',
                  resize_mode='shortest')


def picture(rng, color, shape):
    """One shape somewhere on noise, of any size and aspect ratio."""
    width, height = rng.integers(SIDE, 3 * SIDE, 2)
    image = Image.fromarray(rng.integers(90, 166, (height, width, 3)).astype(np.uint8))
    r = int(min(width, height) // 4)
    x, y = int(rng.integers(r, width - r)), int(rng.integers(r, height - r))
    draw = ImageDraw.Draw(image)
    if shape == 'cross':
        draw.line((x - r, y, x + r, y), color, r // 2)
        draw.line((x, y - r, x, y + r), color, r // 2)
    elif shape == 'square':
        draw.rectangle((x - r, y - r, x + r, y + r), color)
    else:
        draw.ellipse((x - r, y - r, x + r, y + r), color if shape == 'circle' else None, color, r // 3)
    return image


@pytest.fixture(scope='module')
def tar(tmp_path_factory):
    """A tar as img2dataset writes it, with five captions each, and the colour as label."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp('data') / 'val.tar'
    with tarfile.open(path, 'w') as file:
        for i in range(COUNT):
            label, shape = int(rng.integers(len(COLORS))), str(rng.choice(SHAPES))
            color, encoded = COLORS[label], io.BytesIO()
            picture(rng, color, shape).save(encoded, 'JPEG', quality=90)
            words = (f'A {color} {shape}', f'{shape}, {color}!', f'There is a {color} {shape}', f'photo of a {shape}',
                     ' '.join(rng.choice(COLORS + SHAPES, 4)))
            captions = [f'{text} ({i})' for text in words]  # equal captions have equal scores, which count against a query here
            record = json.dumps(dict(captions=captions, label=label)).encode()
            for ending, data in (('jpg', encoded.getvalue()), ('json', record)):
                info = tarfile.TarInfo(f'{i:05d}.{ending}')
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope='module')
def folder(tar, tmp_path_factory):
    return saved(tar, tmp_path_factory.mktemp('model'))


def saved(tar, found):
    """A folder with a model of open_clip. All weights are random but the image tower's projection, a ridge regression of the first
    captions' embeddings, so that it is right now and then."""
    open_clip, save = torch_models.load('open_clip'), pytest.importorskip('safetensors.numpy').save_file
    import torch
    model = open_clip.model.CLIP(**MODEL)
    their_modules.randomise(model)
    prepare = open_clip.image_transform(SIDE, is_train=False, mean=PREPROCESS['mean'], std=PREPROCESS['std'])
    data, projection = examples(tar), model.visual.proj
    with torch.no_grad():
        texts = open_clip.tokenizer.SimpleTokenizer(context_length=LENGTH)([captions[0] for _, captions, _ in data])
        model.visual.proj = None
        image_NW = model.encode_image(torch.stack([prepare(image) for image, _, _ in data]))
        text_ND = model.encode_text(texts, normalize=True)
        projection.copy_(torch.linalg.solve(image_NW.T @ image_NW + RIDGE * torch.eye(image_NW.shape[1]), image_NW.T @ text_ND))
    model.visual.proj = projection
    save(their_modules.state(model), found / 'open_clip_model.safetensors')
    (found / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=MODEL, preprocess_cfg=PREPROCESS)))
    return found


def our_metrics(checkpoint, tar, templates, classes=COLORS):
    """{name: value} of the evaluators of a recipe on a checkpoint, whose own tokenizer they take."""
    source = open_source(checkpoint)
    c = recipe.new()
    c.data.val = dict(source=dict(name='webdataset', files=str(tar)), ops=(dict(name='decode'), *prepared.image_ops(source)))
    c.evals.retrieval = dict(name='retrieval', data='val', length=LENGTH)
    if classes:
        c.evals.zero_shot = dict(name='zero_shot', data='val', length=LENGTH, templates=templates, classes=classes)
    c.kinds = {}
    with evaluate.opened(checkpoint, recipe.resolve(recipe.complete(c))) as (run, _):
        return {name: value for name, value in run() if isinstance(value, float)}


def examples(tar):
    """[(image, captions, label)] by Python's tarfile."""
    with tarfile.open(tar) as file:
        data = {name: file.extractfile(name).read() for name in sorted(file.getnames())}
    records = {name.removesuffix('.json'): json.loads(x) for name, x in data.items() if name.endswith('.json')}
    return [(Image.open(io.BytesIO(data[f'{key}.jpg'])), record['captions'], record.get('label')) for key, record in records.items()]


def of_open_clip(folder):
    """(images -> unit embeddings [N, D], texts -> [M, D]) by open_clip alone."""
    import torch
    open_clip = torch_models.load('open_clip')
    model, prepare = open_clip.create_model_from_pretrained(f'local-dir:{folder}')
    tokenize = open_clip.get_tokenizer(f'local-dir:{folder}')
    return (lambda images: model.encode_image(torch.stack([prepare(image) for image in images]), normalize=True),
            lambda texts: model.encode_text(tokenize(texts), normalize=True))


def of_transformers(folder):
    """The same by transformers, with Pillow's resizing: torchvision rounds otherwise (test_preprocessing.py)."""
    transformers = torch_models.transformers()
    model, tokenizer = transformers.AutoModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend='pil')

    def texts(texts):
        inputs = tokenizer(texts, padding='max_length', truncation=True, return_tensors='pt')
        found = model.get_text_features(input_ids=inputs['input_ids'], attention_mask=inputs['attention_mask']).pooler_output
        return found / found.norm(dim=-1, keepdim=True)

    def images(images):
        found = model.get_image_features(processor([image.convert('RGB') for image in images], return_tensors='pt')['pixel_values']).pooler_output
        return found / found.norm(dim=-1, keepdim=True)
    return images, texts


def their_metrics(encoders, tar, templates, classes=COLORS):
    """The same names, by CLIP_benchmark's definitions.

    Zero-shot: a class is the unit mean of its unit prompt embeddings. Recall at k: whether any right one is among the k best.
    """
    import torch
    encode_images, encode_texts = encoders
    found, data = {}, examples(tar)
    owner_M = torch.tensor([i for i, (_, captions, _) in enumerate(data) for _ in captions])
    with torch.no_grad():
        image_ND, text_MD = encode_images([image for image, _, _ in data]), encode_texts([text for _, captions, _ in data for text in captions])
        right_MN = owner_M[:, None] == torch.arange(len(data))
        score_MN = text_MD @ image_ND.T
        for name, score, right in (('text_to_image', score_MN, right_MN), ('image_to_text', score_MN.T, right_MN.T)):
            for k in (1, 5, 10):
                best = score.topk(k, dim=1).indices
                found[f'retrieval/{name}_r{k}'] = right.gather(1, best).any(dim=1).double().mean().item()
        if classes:
            class_CD = []
            for name in classes:
                mean_D = encode_texts([template.replace('{}', name) for template in templates]).mean(dim=0)
                class_CD.append(mean_D / mean_D.norm())
            label_N = torch.tensor([label for _, _, label in data])
            best_NK = (100 * image_ND @ torch.stack(class_CD).T).topk(min(5, len(classes)), dim=1).indices
            for k in (1, 5):
                found[f'zero_shot/top{k}'] = (best_NK[:, :k] == label_N[:, None]).any(dim=1).double().mean().item()
    return found


@pytest.mark.parametrize('kind', ['as open_clip saved it', 'open_clip', 'hf'])
def test_the_same_accuracies_and_recalls(folder, tar, tmp_path, kind):
    """The model as another library wrote it, and as tools/convert.py writes it for both libraries."""
    checkpoint, theirs = f'open_clip:{folder}', of_open_clip
    if kind in ('open_clip', 'hf'):
        assert convert.main([checkpoint, f'{kind}:{tmp_path}']) == 0
        checkpoint, folder, theirs = f'{kind}:{tmp_path}', tmp_path, of_transformers if kind == 'hf' else of_open_clip
    found = our_metrics(checkpoint, tar, 'ensemble')
    expected = their_metrics(theirs(folder), tar, prompts.TEMPLATES['ensemble'])
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert found['retrieval/captions'] == COUNT * EACH and found['retrieval/n'] == found['zero_shot/n'] == COUNT
    assert 0 < expected['retrieval/image_to_text_r1'] < expected['retrieval/image_to_text_r10'] < 1, 'the numbers can be wrong'
    assert 0 < expected['zero_shot/top1'] < expected['zero_shot/top5'] < 1
