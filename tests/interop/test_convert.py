"""tools/convert.py: a run as files of other libraries, and back."""

import json

import numpy as np
import pytest
import torch_models
from PIL import Image

import bigvlm
from bigvlm import model as model_lib
from bigvlm.core import parts, paths
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import big_vision, export
from tools import convert

pytestmark = pytest.mark.usefixtures('one_device')
TEXTS = ['a red dog', 'blue cat', 'x']
# Of the model's size; what other sizes become is test_preprocessing.py's business.
IMAGES = [Image.fromarray(x) for x in np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)]


def converted(capsys, source, target, *more):
    code = convert.main([str(source), str(target), *more])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def same(a, b):
    flat, other = paths.flatten(a.params), paths.flatten(b.params)
    flat, other = ({path.replace('contrast/', 'match/'): np.asarray(x) for path, x in found.items()} for found in (flat, other))
    assert flat.keys() == other.keys()
    for path in flat:
        assert np.array_equal(flat[path], other[path]), path


@pytest.mark.parametrize('kind', ['hf', 'open_clip'])
def test_there_and_back(run, model, tmp_path, capsys, kind):
    out = converted(capsys, run, f'{kind}:{tmp_path}/out')
    assert f'{kind}:{tmp_path}/out written' in out
    back = bigvlm.load(f'{kind}:{tmp_path}/out')
    same(model, back)
    assert np.array_equal(back.encode_texts(TEXTS), model.encode_texts(TEXTS)) and back.length == 12
    assert back.image_ops[0]['size'] == 32
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert '# small_clip' in card and '7 steps of 8 examples (56 in all), adamw with rate 0.001' in card
    assert 'Data `train`: a folder, 9 examples (content ab12).' in card and '| zero_shot/top1 | 43.2 % | 10.0 % |' in card
    assert 'A paper, arXiv 0000.00000' in card and '20.0 %' not in card and '77.0 %' not in card, 'of this step alone'


def test_half_precision_and_another_library_to_another(run, model, tmp_path, capsys):
    converted(capsys, run, f'hf:{tmp_path}/a', '--dtype', 'bfloat16')
    converted(capsys, f'hf:{tmp_path}/a', f'open_clip:{tmp_path}/b')
    rounded = bigvlm.load(f'open_clip:{tmp_path}/b')
    for path, x in paths.flatten(model.params).items():
        found = paths.flatten(rounded.params)[path.replace('contrast/', 'match/')]
        assert np.array_equal(np.asarray(found), np.asarray(x.astype('bfloat16').astype('float32'))), path


def test_artefacts_run_without_the_model(run, model, tmp_path, capsys):
    from jax import export
    from safetensors.numpy import load_file
    converted(capsys, run, f'stablehlo:{tmp_path}')
    params = load_file(tmp_path / 'params.safetensors')
    images, ids = np.stack([model.prepare(x) for x in IMAGES]), model.tokenizer(TEXTS, 12)
    for side, rows, expected in (('image', images, model.encode_images(IMAGES)), ('text', ids, model.encode_texts(TEXTS))):
        made = export.deserialize((tmp_path / f'{side}.b.stablehlo').read_bytes())
        assert made.platforms == ('cpu', 'cuda', 'tpu')
        assert abs(np.asarray(made.call(params, rows)) - expected).max() < 1e-6
        fixed = export.deserialize((tmp_path / f'{side}.8.stablehlo').read_bytes())
        assert abs(np.asarray(fixed.call(params, np.resize(rows, (8, *rows.shape[1:]))))[:3] - expected).max() < 1e-6
        with pytest.raises(ValueError, match='[Ss]hape'):
            fixed.call(params, rows)
    about = json.loads((tmp_path / 'artefact.json').read_text())
    assert about['towers'] == dict(image=dict(input=['uint8', 32, 32, 3], width=16), text=dict(input=['int32', 12], width=16))


def test_saying_what_is_there(run, capsys):
    assert convert.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert 'towers.image: ' in out and 'name=vit' in out and '  image/patch_embed/kernel float32[192, 32]' in out and ' parameters' in out


@pytest.mark.parametrize('target, message', [
    ('somewhere', "target: found 'somewhere'; valid: hf:PATH"), ('onnx:x', 'target: found'),
    ('npz:{}/x.npz', "towers.image.out_bias: found False; big_vision has True")])
def test_what_cannot_be(run, tmp_path, capsys, target, message):
    assert convert.main([str(run), target.format(tmp_path)]) == 2
    assert f'convert: {message}' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['npz', 'stablehlo'])
def test_files_of_one_dtype(run, tmp_path, capsys, kind):
    assert convert.main([str(run), f'{kind}:{tmp_path}/x', '--dtype', 'bfloat16']) == 2
    assert f'convert: --dtype: {kind} is written in float32' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_model_of_transformers(run, tmp_path, capsys):
    assert convert.main([str(run), f'hf:{tmp_path}', '--model_type', 'siglip']) == 2
    assert 'transformers has no model for this one:\nsiglip: objectives' in capsys.readouterr().err


def test_a_tower_alone(tmp_path, capsys):
    """Of an npz of AugReg's shape: as transformers' ViT, and back to an npz, bit for bit."""
    rng = np.random.default_rng(0)
    c = dict(towers=dict(image=dict(name='vit', size='', width=32, depth=2, heads=2, patch=8, image=224, pool='cls', out_dim=0, dtype='float32')))
    described = big_vision.describe(big_vision.theirs(c))
    params = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in described.abstract.items()}
    export.to_npz(tmp_path / 'a.npz', c, params, lambda path: path)
    converted(capsys, f'npz:{tmp_path}/a.npz', f'npz:{tmp_path}/b.npz')
    first, second = np.load(tmp_path / 'a.npz'), np.load(tmp_path / 'b.npz')
    assert sorted(first) == sorted(second) and all(np.array_equal(first[name], second[name]) for name in first)
    converted(capsys, f'npz:{tmp_path}/a.npz', f'hf:{tmp_path}/vit', '--model_type', 'vit')
    converted(capsys, f'hf:{tmp_path}/vit', f'npz:{tmp_path}/c.npz')
    third = np.load(tmp_path / 'c.npz')
    assert sorted(first) == sorted(third) and all(np.array_equal(first[name], third[name]) for name in first)
    assert convert.main([f'npz:{tmp_path}/a.npz', f'hf:{tmp_path}/vit', '--model_type', 'swin']) == 2
    assert 'swin: towers.image.name' in capsys.readouterr().err
    assert convert.main([f'npz:{tmp_path}/a.npz', f'hf:{tmp_path}/vit']) == 2
    assert 'for a tower alone; valid: npz:FILE, or hf:DIR with --model_type' in capsys.readouterr().err


def test_a_tower_of_a_run(run, tmp_path, capsys):
    assert convert.main([str(run), f'npz:{tmp_path}/x.npz', '--tower', 'sight']) == 2
    assert "tower: there is no tower 'sight' (there are: image, text)" in capsys.readouterr().err


@pytest.mark.parity
def test_transformers_opens_the_folder(run, model, tmp_path, capsys):
    transformers = torch_models.transformers()
    converted(capsys, run, f'hf:{tmp_path}')
    theirs, processor = transformers.AutoModel.from_pretrained(tmp_path), transformers.AutoProcessor.from_pretrained(tmp_path)
    found = theirs(**processor(text=TEXTS, images=IMAGES, padding='max_length', truncation=True, return_tensors='pt'))
    assert abs(found.image_embeds.detach().numpy() - model.encode_images(IMAGES)).max() < 1e-5
    assert abs(found.text_embeds.detach().numpy() - model.encode_texts(TEXTS)).max() < 1e-5
    names = ('dog', 'cat')
    inputs = processor(text=[f'a {name}' for name in names], images=IMAGES, padding='max_length', truncation=True, return_tensors='pt')
    probability = theirs(**inputs).logits_per_image.softmax(dim=1).detach().numpy()
    assert abs(probability - model.classify(IMAGES, names, ('a {}',)).probability_NC).max() < 1e-5


@pytest.mark.parity
def test_open_clip_opens_the_folder(run, model, tmp_path, capsys):
    open_clip = torch_models.load('open_clip')
    import torch
    converted(capsys, run, f'open_clip:{tmp_path}')
    theirs, preprocess = open_clip.create_model_from_pretrained(f'local-dir:{tmp_path}')
    tokenizer = open_clip.get_tokenizer(f'local-dir:{tmp_path}')
    with torch.no_grad():
        image = theirs.eval().encode_image(torch.stack([preprocess(x) for x in IMAGES]), normalize=True).numpy()
        text = theirs.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    assert abs(image - model.encode_images(IMAGES)).max() < 1e-5 and abs(text - model.encode_texts(TEXTS)).max() < 1e-5


def test_towers_and_batches_of_other_names():
    """Beside a tower that is already called 'image'."""
    towers = dict(student=dict(name='vit', size='B'), image=dict(name='vit', size='L'), words=dict(name='text'))
    spec = dict(name='contrastive', image='photo', text='words', image_tower='student', text_tower='')
    groups, path = export.renamed(dict(towers=towers, objectives=dict(c=spec)), 'c', 'student', 'words')
    assert groups['towers'] == dict(image=towers['student'], text=towers['words'])
    assert model_lib.towers_of(parts.build('bigvlm.objectives', groups['objectives']['match'], '')) == dict(
        photo=('image_tower', 'image'), words=('text_tower', 'text'))
    assert [path(there) for there in ('image/a', 'text/b', 'match/t', 'joint/c')] == ['student/a', 'words/b', 'c/t', 'joint/c']
    with pytest.raises(WeightsError, match='^towers.student: encodes images and texts'):
        export.renamed(dict(towers=towers, objectives=dict(c=spec)), 'c', 'student', 'student')
