"""The suite: what is found in a folder, what is said of what is not there, and a checkpoint on all of it."""

import csv
import io
import json
import re
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from bigvlm import checkpoint, evaluate, recipe, train
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline
from bigvlm.evals import measures, suite
from tools import suite as tool

OPS = (dict(name='decode'), dict(name='resize', size=16))
COLORS = {'red': (220, 20, 20), 'green': (20, 220, 20)}
PROMPTS = """# Prompts
## OxfordPets

```bash
classes = [
    'not used',
]

templates = [
    'a photo of a {}, a type of pet.',
]
```
## Food101
templates = ['a', 'b',
]
"""


def png(color, seed=0):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 20, (18, 16, 3))
    Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(file, 'PNG')
    return file.getvalue()


def write_tar(path, rows):
    """``rows``: {ending: bytes} of each sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for i, row in enumerate(rows):
            for ending, content in row.items():
                info = tarfile.TarInfo(f'{i:05}.{ending}')
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_tfds(folder, name, features, splits):
    """A prepared data set of one ArrayRecord file for each split; its metadata written by TFDS."""
    features, infos, version = tfds.features.FeaturesDict(features), [], folder / name / '1.0.0'
    version.mkdir(parents=True)
    title = name.split('/')[0]
    for split, examples in splits.items():
        writer = ArrayRecordWriter(str(version / f'{title}-{split}.array_record-00000-of-00001'), 'group_size:1')
        for example in examples:
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
        template = tfds.core.ShardedFileTemplate(data_dir=version, dataset_name=title, split=split, filetype_suffix='array_record')
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(examples)], num_bytes=0, filename_template=template))
    tfds.folder_dataset.write_metadata(data_dir=version, features=features, split_infos=infos, check_data=False,
                                       filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Class folders (cars), tars with and without class names (sst2, gtsrb), captions (flickr30k), TFDS (pets, voc2007), a broken one."""
    folder, colors = tmp_path_factory.mktemp('sets'), list(COLORS.values())
    for split, count in (('train', 8), ('test', 4)):
        for i in range(count):
            for name, color in COLORS.items():
                path = folder / 'cars' / split / f'{name}_Car' / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(color, i))
        rows = [{'png': png(colors[i % 2], i), 'cls': str(i % 2).encode()} for i in range(count)]
        for name in ('sst2', 'gtsrb'):
            write_tar(folder / name / split / '0.tar', rows)
    (folder / 'sst2' / 'classnames.txt').write_text('negative\npositive\n')
    (folder / 'sst2' / 'zeroshot_classification_templates.txt').write_text('a {c} review of a movie.\n')
    write_tar(folder / 'flickr30k' / 'test' / '0.tar',
              [{'png': png(colors[i % 2], i), 'json': json.dumps({'captions': [f'one {i}', f'two {i}']}).encode()} for i in range(6)])
    (folder / 'country211' / 'test').mkdir(parents=True)
    label = dict(image=tfds.features.Image(), label=tfds.features.ClassLabel(names=['Abyssinian', 'american_bulldog']))
    write_tfds(folder, 'oxford_iiit_pet', label, {split: [dict(image=png(colors[i % 2], i), label=i % 2) for i in range(8)]
                                                  for split in ('train', 'test')})
    names = tfds.features.ClassLabel(names=['aeroplane', 'bicycle'])
    voc = dict(image=tfds.features.Image(), labels=tfds.features.Sequence(names), labels_no_difficult=tfds.features.Sequence(names))
    rows = [dict(image=png(colors[i % 2], i), labels=[0, 1] if i == 3 else [i % 2], labels_no_difficult=[i % 2]) for i in range(6)]
    write_tfds(folder, 'voc/2007', voc, dict(train=rows, validation=rows, test=rows))
    return folder


def test_the_table_is_the_survey_s():
    assert len(suite.CLASSIFICATION) == 27
    sums = [sum(getattr(known, field) for known in suite.CLASSIFICATION.values()) for field in ('classes', 'train', 'test')]
    assert sums == [3_113, 2_122_773, 302_194], 'of Table II, added up'
    assert [name for name, known in suite.CLASSIFICATION.items() if known.metric != 'top1'] == [
        'caltech101', 'voc2007', 'flowers102', 'pets', 'aircraft', 'hateful_memes']
    for name, known in suite.SETS.items():
        assert known.metric in measures.SINGLE | measures.MULTI or known.metric in ('recall', 'mWAP'), name


def test_finds_what_is_there_and_says_what_is_not(folder):
    plan = suite.specs((), str(folder), OPS, length=24, every='50%')
    assert len(plan.rows) == 2 * 30 + 2, 'every set has a row for each of its kinds'
    there = {row.evaluator for row in plan.rows if row.evaluator}
    assert there == set(plan.evals) == {
        'cars_zero_shot', 'cars_linear_probe', 'sst2_zero_shot', 'sst2_linear_probe', 'gtsrb_linear_probe', 'pets_zero_shot',
        'pets_linear_probe', 'voc2007_zero_shot', 'voc2007_linear_probe', 'flickr30k_retrieval'}
    reasons = {(row.set, row.kind): row.reason for row in plan.rows if not row.evaluator}
    assert reasons['gtsrb', 'zero_shot'] == f'no class names: write {folder}/gtsrb/classnames.txt, one per line in the order of the labels'
    assert reasons['mnist', 'zero_shot'] == f'no folder {folder}/mnist/test, and TFDS data set mnist is not prepared in {folder}'
    assert reasons['aircraft', 'linear_probe'] == f'no folder {folder}/aircraft/test, and TFDS does not have it'
    assert reasons['country211', 'linear_probe'] == f'no folder {folder}/country211/train'
    assert 'no .jpg' in reasons['country211', 'zero_shot'] and reasons['rareact', 'zero_shot'].startswith('no measure mWAP')
    assert plan.evals['cars_zero_shot'] == dict(
        name='zero_shot', data='cars_test', metric='top1', classes=('green Car', 'red Car'), templates='photo', tokenizer='text', length=24,
        canonicalize=False, limit=0, every='50%')
    assert plan.evals['voc2007_linear_probe'] == dict(
        name='linear_probe', data='voc2007_test', train='voc2007_train', val='voc2007_val', metric='map11', tags='labels',
        sure='labels_no_difficult', classes=('aeroplane', 'bicycle'), limit=0, every='50%')
    assert plan.evals['sst2_zero_shot']['templates'] == f'{folder}/sst2/zeroshot_classification_templates.txt'
    assert plan.evals['pets_zero_shot']['classes'] == ('Abyssinian', 'american bulldog')


def test_its_data_sets_open_with_labels_captions_and_tags(folder):
    plan = suite.specs((), str(folder), OPS)
    datasets = pipeline.Datasets(dict(data=plan.data, seed=0), {})
    examples = {name: [datasets(name).example(i) for i in range(len(datasets(name)))] for name in plan.data}
    assert all(example['image'].shape == (16, 16, 3) for rows in examples.values() for example in rows)
    assert [e['label'] for e in examples['pets_test']] == [0, 1] * 4 and [e['label'] for e in examples['sst2_test']] == [0, 1, 0, 1]
    assert [e['label'] for e in examples['cars_test']] == [0] * 4 + [1] * 4
    assert examples['flickr30k_test'][2]['captions'] == ('one 2', 'two 2')
    assert [list(examples['voc2007_val'][3][key]) for key in ('labels', 'labels_no_difficult')] == [[0, 1], [1]]


def test_templates_of_clip_s_file(folder, tmp_path):
    (tmp_path / 'prompts.md').write_text(PROMPTS)
    plan = suite.specs(('pets', 'cars'), str(folder), OPS, kinds=('zero_shot',), prompts=str(tmp_path / 'prompts.md'))
    assert plan.evals['pets_zero_shot']['templates'] == ('a photo of a {}, a type of pet.',)
    assert plan.evals['pets_zero_shot']['classes'] == ('Abyssinian', 'american bulldog')
    assert plan.evals['cars_zero_shot']['templates'] == 'photo'


@pytest.mark.parametrize('label, words', [('/a/airplane_cabin', 'airplane cabin'), ('/c/church/indoor', 'church indoor'),
                                          ('AnnualCrop', 'annual crop'), ('AM General Hummer SUV 2000', 'AM General Hummer SUV 2000')])
def test_labels_as_one_would_say_them(label, words):
    assert suite.spoken(label) == words


@pytest.mark.parametrize('fields, message', [
    (dict(names=('imagenett',)), "names: found 'imagenett'; valid: mnist, "),
    (dict(kinds=('probe',)), "kinds: found 'probe'; valid: zero_shot"),
    (dict(prompts='none.md'), 'prompts: none.md cannot be read'), (dict(prompts=measures.__file__), "prompts: .* has no '## SET'"),
])
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        suite.specs(**dict(names=(), folder='x', ops=OPS) | fields)


@pytest.fixture(scope='module')
def workdir(folder, tmp_path_factory):
    """An untrained model as a run would leave it."""
    patch = pytest.MonkeyPatch()
    patch.setenv('BIGVLM_CACHE', str(tmp_path_factory.mktemp('cache')))
    device = jax.devices()[0]
    patch.setattr(jax, 'devices', lambda *_: [device])
    path, c, small = tmp_path_factory.mktemp('run'), recipe.new(), dict(size='', width=16, depth=1, heads=2, out_dim=8, dtype='float32')
    c.batch, c.steps = 2, '4 steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=40, pad='eos'))
    c.towers = dict(image=dict(name='vit', image=16, patch=8, **small), text=dict(name='text', vocab=40, length=8, **small))
    c.objectives = dict(match=dict(name='sigmoid'))
    source = dict(name='webdataset', files=str(folder / 'flickr30k' / 'test' / '*.tar'))
    c.data = dict(train=dict(source=source, ops=(*OPS, dict(name='tokenize', length=8))))
    c.optim = dict(name='adamw', lr=1e-3, schedule=dict(name='constant'))
    config = recipe.resolve(recipe.complete(c))
    (path / 'config.json').write_text(json.dumps(config))
    run = train.prepare(config)
    rng, abstract = np.random.default_rng(0), run.plan.abstract
    with jax.set_mesh(run.mesh):
        state = jax.tree.map(lambda x: jnp.asarray(.3 * rng.normal(size=x.shape), x.dtype), abstract.replace(key=()))
        checkpoints = checkpoint.Checkpoints(path / 'checkpoints')
        checkpoints.save(3, jax.device_put(state.replace(key=jax.random.key(0)), run.placed.shardings), {})
        checkpoints.close()
    yield path
    patch.undo()


def test_a_checkpoint_on_every_set_that_is_there(folder, workdir, capsys):
    write_tar(folder / 'fer2013' / 'test' / '0.tar', [{'png': png((9, 9, 9)), 'cls': b'7'}])  # more classes than names
    (folder / 'fer2013' / 'classnames.txt').write_text('angry\nhappy\n')
    tool.main(['--workdir', str(workdir), '--data', str(folder), '--limit', '6', '--batch', '4',
               '--sets', 'cars,sst2,fer2013,mnist,flickr30k,voc2007'])
    out = capsys.readouterr().out
    assert 'not run:\n  ' in out and 'mnist linear_probe: no folder' in out
    assert 'fer2013 zero_shot: classes: \'fer2013_test\' has label 7, but there are 2 names' in out
    with open(workdir / 'suite.csv', encoding='utf-8') as file:
        rows = {(row['set'], row['kind']): row for row in csv.DictReader(file)}
    assert len(rows) == 5 * 2 + 1 and all(row['step'] == '3' and bool(row['value']) != bool(row['reason']) for row in rows.values())
    probe, n = float(rows['sst2', 'linear_probe']['value']), rows['sst2', 'linear_probe']['n']
    assert rows['sst2', 'linear_probe']['metric'] == 'top1' and probe * 4 % 1 == 0 and n == '4'
    assert rows['sst2', 'linear_probe']['survey_n'] == '1821'
    ran = [float(rows[name, 'zero_shot']['value']) for name in ('cars', 'sst2', 'voc2007')]
    assert f'zero_shot: mean {100 * sum(ran) / 3:.2f} over 3 of 5 sets' in out and 'retrieval: mean ' in out.replace('over 1 of 1 sets', '')


def test_published_numbers_stand_beside(folder, workdir, capsys, tmp_path, monkeypatch):
    def run(value):
        (tmp_path / 'anchors.csv').write_text(f'model,set,kind,metric,value,source\nm,sst2,zero_shot,top1,{value},x\nm,mnist,zero_shot,top1,1,x\n')
        monkeypatch.setattr(tool.anchors, '__defaults__', (str(tmp_path / 'anchors.csv'),))
        with pytest.raises(SystemExit) as end:
            tool.main(['--workdir', str(workdir), '--data', str(folder), '--limit', '6', '--batch', '4', '--sets', 'sst2', '--kinds', 'zero_shot',
                       '--published', 'm'])
        return end.value.code, capsys.readouterr().out
    code, out = run(1000.)
    assert code == 1 and 'sst2 top1: 1000.0 published, ' in out and out.count('OFF') == 1 and 'mnist top1: 1.0 published, not run here' in out
    code, out = run(re.search(r'published, ([\d.]+) here', out)[1])
    assert code == 0 and 'OFF' not in out
    monkeypatch.undo()
    assert tool.anchors('openai_b32')['imagenet', 'zero_shot', 'top1'] == 63.3
    with pytest.raises(RecipeError, match="--published: found 'x'; valid: openai_b32, openai_l14"):
        tool.anchors('x')


def test_the_command_line_names_what_is_wrong(tmp_path, workdir, folder):
    for arguments, message in ((['--workdir', str(tmp_path)], r'suite: .* is no checkpoint'), ([], 'suite: --workdir, --checkpoint: which'),
                               (['--workdir', str(workdir), '--objective', 'x'], "--objective: 'x'; valid: match"),
                               (['--workdir', str(workdir), '--step', '9', '--sets', 'mnist'], 'suite: .* no complete checkpoint of step 9')):
        with pytest.raises(SystemExit, match=message):
            tool.main([*arguments, '--data', str(folder)])


def test_evaluates_without_a_suite_too(workdir):
    with evaluate.opened(str(workdir), recipe.resolve({**recipe.new().to_dict(), 'kinds': {}})) as (run, model):
        assert model.source.step == 3 and list(run()) == []
