"""From one library's files to another's: a run or a foreign checkpoint, as a folder that transformers or open_clip opens.

    python tools/convert.py runs/siglip hf:out/siglip                    # AutoModel.from_pretrained('out/siglip')
    python tools/convert.py runs/clip@20000 open_clip:out/clip           # open_clip.create_model_from_pretrained('local-dir:out/clip')
    python tools/convert.py hf:DIR open_clip:out/clip --dtype bfloat16
    python tools/convert.py runs/lit hf:out/bert --tower text --model_type bert
    python tools/convert.py runs/siglip npz:out/siglip.npz               # big_vision
    python tools/convert.py runs/siglip stablehlo:out/siglip             # each tower as a jax.export artefact
    python tools/convert.py hf:DIR                                       # only says what is there
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

import bigvlm  # noqa: E402
from bigvlm import prepared  # noqa: E402
from bigvlm.core import paths  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.interop import artefact, card, export  # noqa: E402
from bigvlm.interop.source import Source, open_source  # noqa: E402

TARGETS = ('hf', 'open_clip', 'npz', 'stablehlo')
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='convert.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('source', help='hf:DIR, hf:ORG/NAME, open_clip:FILE, timm:FILE, npz:FILE, WORKDIR or WORKDIR@STEP')
    add('target', nargs='?', default='', help=f'{", ".join(f"{name}:PATH" for name in TARGETS)}; none: say what the source is')
    add('--objective', default='', help="whose embeddings; the model's first that has any by default")
    add('--tower', default='', help='give this tower away alone (hf with --model_type, npz); a source that is one tower is')
    add('--model_type', default='', help='of transformers; the first that holds the model by default')
    add('--dtype', default='float32', choices=list(DTYPES), help='of the arrays in the files')
    add('--tokenizer', default='', help="of a source that has none, as 'sentencepiece,model=FILE,lower=True'")
    add('--no_tokenizer', action='store_true', help='write no files of a tokenizer')
    options = parser.parse_args(arguments)
    try:
        if not options.target:
            describe(options.source)
            return 0
        notes = convert(options)
    except RecipeError as error:
        print(f'convert: {error}', file=sys.stderr)
        return 2
    print(f'{options.target} written')
    for note in notes:
        print(f'  note: {note}')
    return 0


def describe(checkpoint: str) -> None:
    source = open_source(checkpoint)
    for group in ('towers', 'fusion', 'decoders', 'objectives', 'tokenizers'):
        for name, spec in source.config.get(group, {}).items():
            print(f'{group}.{name}: {", ".join(f"{key}={value}" for key, value in spec.items())}')
    for path, x in source.abstract.items():
        print(f'  {path} {x.dtype}{list(x.shape)}')
    print(f'{sum(np.prod(x.shape, dtype=np.int64) for x in source.abstract.values()):,} parameters')


def convert(options: argparse.Namespace) -> list[str]:
    """Writes the target; returns what differs there."""
    kind, colon, place = options.target.partition(':')
    if not colon or kind not in TARGETS or not place:
        raise RecipeError(f'target: found {options.target!r}; valid: {", ".join(f"{name}:PATH" for name in TARGETS)}')
    if kind in ('npz', 'stablehlo') and options.dtype != 'float32':
        raise RecipeError(f'--dtype: {kind} is written in float32')
    source = open_source(options.source, options.tokenizer)
    if options.tower or not source.config.get('objectives'):
        return convert_tower(source, kind, Path(place), options)
    model = bigvlm.load(options.source, objective=options.objective, tokenizer=options.tokenizer)
    if kind == 'stablehlo':
        return artefact.write(Path(place), model)
    sides = [prepared.tower_of(model.config, side, model.objective) for side in ('image', 'text')]
    groups, path = export.renamed(model.config, model.objective, *sides, whole=options.model_type == 'flava')
    params = paths.flatten(model.params) | paths.flatten(model.collections.get('batch_stats', {}))
    if kind == 'npz':
        return export.to_npz(Path(place), groups, params, path)
    source = model.source
    about = card.About(source.where, source.config) if source.step is None else card.of_run(
        Path(source.where.rpartition('@')[0]), source.step, source.config, source.where)
    given = dict(image_ops=model.image_ops, tokenizer=None if options.no_tokenizer else model.tokenizer, length=model.length,
                 about=about, dtype=DTYPES[options.dtype])
    if kind == 'open_clip':
        return export.to_open_clip(Path(place), groups, params, path, **given)
    return export.to_hf(Path(place), groups, params, path, model_type=options.model_type, **given)


def convert_tower(source: Source, kind: str, place: Path, options: argparse.Namespace) -> list[str]:
    """One tower by itself, with the parameters that training left (not averages)."""
    if kind not in ('hf', 'npz') or kind == 'hf' and not options.model_type:
        raise RecipeError(f'target: found {options.target!r} for a tower alone; valid: npz:FILE, or hf:DIR with --model_type vit, bert, swin, …')
    groups, path = export.tower_alone(source.config, options.tower or next(iter(source.config['towers'])))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    prefix = path('/')
    params = source.load({name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in source.abstract.items()
                          if name.startswith(prefix)})
    if kind == 'npz':
        return export.to_npz(place, groups, params, path)
    tower = next(iter(groups['towers'].values()))
    ops = source.description.image_ops if source.description else ()
    if 'image' in groups['towers'] and not ops:
        ops = (dict(name='resize', size=tower['image'], crop='squash'),)
    tokenizer = source.config.get('tokenizers', {}).get('text') if 'text' in groups['towers'] and not options.no_tokenizer else None
    return export.to_hf(place, groups, params, path, model_type=options.model_type, image_ops=ops, tokenizer=tokenizer,
                        length=tower.get('length', 0), about=card.About(source.where, groups), dtype=DTYPES[options.dtype])


if __name__ == '__main__':
    sys.exit(main())
