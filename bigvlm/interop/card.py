"""The model card: what a model is, what it was trained on and how, how good it is, and how to use the files beside it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_USE = {
    'transformers': '''from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained('THIS FOLDER'), AutoProcessor.from_pretrained('THIS FOLDER')
inputs = processor(text=['a dog', 'a cat'], images=image, padding='max_length', truncation=True, return_tensors='pt')
print(model(**inputs).logits_per_image.softmax(dim=1))''',
    'open_clip': '''import open_clip
model, preprocess = open_clip.create_model_from_pretrained('local-dir:THIS FOLDER')
tokenizer = open_clip.get_tokenizer('local-dir:THIS FOLDER')
image = model.encode_image(preprocess(image)[None], normalize=True)
print(image @ model.encode_text(tokenizer(['a dog', 'a cat']), normalize=True).T)''',
}
_SHOWN = ('top1', 'top5', 'mean_per_class', '_r1', '_r5', '_r10')  # endings of metrics that tables have


@dataclasses.dataclass(frozen=True)
class About:
    """Of a model, for its card.

    where: the checkpoint. config: the recipe's groups, of a run the whole recipe. step: of a run. data: {data set: its record}, as
    in a workdir's data.json. results: {evaluator/metric: value} of this step.
    """
    where: str
    config: Mapping[str, Any]
    step: int | None = None
    recipe: str = ''
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    results: Mapping[str, float] = dataclasses.field(default_factory=dict)


def of_run(workdir: Path, step: int, config: Mapping[str, Any], where: str) -> About:
    """What a run's folder says of one of its checkpoints."""
    def read(name: str) -> dict[str, Any]:
        return json.loads((workdir / name).read_text(encoding='utf-8')) if (workdir / name).is_file() else {}
    file = workdir / 'metrics.jsonl'
    lines = map(json.loads, file.read_text(encoding='utf-8').splitlines() if file.is_file() else ())
    results = {name: value for line in lines if line['step'] == step for name, value in line.items() if '/' in name}
    apart = read('evaluation.json')
    results |= {name: value for name, value in apart.items() if name != 'step'} if apart.get('step') == step else {}
    trained_on = {spec['data'] for spec in config.get('kinds', {}).values()}
    trained_on |= {member for name in trained_on for member in config['data'].get(name, {}).get('mix', ())}
    data = {name: record for name, record in read('data.json').items() if name in trained_on}
    evaluators = set(config.get('evals', {}))
    return About(where, config, step, read('run.json').get('recipe', ''), data,
                 {name: value for name, value in results.items() if name.split('/')[0] in evaluators})


def text(about: About, library: str, notes: Sequence[str] = ()) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads. ``notes``: sentences on what differs in these files."""
    kind = {'transformers': 'transformers', 'open_clip': 'open_clip'}[library]
    said = about.config.get('about', {})
    title, method = about.recipe or Path(about.where).name, f' Method: {said["paper"]}.' if said.get('paper') else ''
    parts = [f'---\nlibrary_name: {kind}\npipeline_tag: zero-shot-image-classification\ntags: [vision-language, bigvlm]\n---',
             f'# {title}',
             f'A vision-language model, exported by bigvlm from `{about.where}`.' + method,
             '## Use', f'```python\n{_USE[library]}\n```', '## Model', _model(about.config)]
    if about.step is not None:
        parts += ['## Training', _training(about)]
    if about.results:
        parts += ['## Evaluation', _results(about.results)]
    if notes:
        parts += ['## What differs in these files', '\n'.join(f'- {note}' for note in notes)]
    if said.get('paper'):
        parts += ['## Citation', f'Cite the method: {said["paper"]}.']
    return '\n\n'.join(parts) + '\n'


def _model(config: Mapping[str, Any]) -> str:
    rows = [(f'{group[:-1]} `{name}`', ', '.join(f'{key}={value}' for key, value in spec.items() if key in _TOLD))
            for group in ('towers', 'decoders', 'objectives') for name, spec in config.get(group, {}).items()]
    return '| part | |\n|---|---|\n' + '\n'.join(f'| {name} | {what} |' for name, what in rows)


_TOLD = ('name', 'size', 'width', 'depth', 'heads', 'patch', 'image', 'pool', 'vocab', 'length', 'out_dim', 'activation', 'weight')


def _training(about: About) -> str:
    config = about.config
    examples = about.step * config['batch']
    lines = [f'{about.step:,} steps of {config["batch"]:,} examples ({examples:,} in all), {config["optim"].get("name")} with rate '
             f'{config["optim"].get("lr")}, seed {config["seed"]}.']
    lines += [f'Data `{name}`: {record["source"]}, {record["surviving"]:,} examples (content {record["fingerprint"]}).'
              for name, record in about.data.items()]
    return '\n'.join(lines)


def _results(results: Mapping[str, float]) -> str:
    rows = [(name, results[name], results.get(f'{name}_chance')) for name in results if name.endswith(_SHOWN)]
    return '| evaluation | | chance |\n|---|---|---|\n' + '\n'.join(
        f'| {name} | {100 * value:.1f} % | {"" if chance is None else f"{100 * chance:.1f} %"} |' for name, value, chance in rows)
