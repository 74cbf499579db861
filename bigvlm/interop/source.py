"""Where weights come from: another library's file, or a run of ours.

    hf:DIR, hf:ORG/NAME     transformers' folder, or a model of the Hugging Face hub (its cache, or a download)
    open_clip:FILE          open_clip's folder or file, OpenAI's state dict
    timm:FILE               a ViT of timm
    npz:FILE                big_vision's and AugReg's
    WORKDIR, WORKDIR@STEP   a run: its newest checkpoint, or that of a step
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from bigvlm.checkpoint import CheckpointError, Checkpoints
from bigvlm.core import foreign, parts, stages
from bigvlm.core.foreign import WeightsError
from bigvlm.data.prepare import spec
from bigvlm.interop import load
from bigvlm.interop.description import Description

FORMATS = {'hf': 'bigvlm.interop.hf', 'open_clip': 'bigvlm.interop.open_clip', 'timm': 'bigvlm.interop.timm',
           'npz': 'bigvlm.interop.big_vision'}  # each has open_model(place) -> (Description, Weights)

Placement = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model whose arrays can be had.

    where: for messages. config: the recipe's groups that make it; of a run, the whole recipe in its
    last stage. abstract: {path: shape and type} of
    its parameters and running statistics. load: {path: shape, type and sharding} of some of them -> {path: array}.
    description: of another library's model; None of a run. kept, load_kept: of a run, the same of its optimizer's state, averages and
    collections, by the paths of its state ('opt/…', 'ema/…', 'collections/…'); step: its checkpoint's.
    """
    where: str
    config: Mapping[str, Any]
    abstract: Mapping[str, jax.ShapeDtypeStruct]
    load: Callable[[Placement], dict[str, jax.Array]]
    description: Description | None = None
    kept: Mapping[str, jax.ShapeDtypeStruct] = dataclasses.field(default_factory=dict)
    load_kept: Callable[[Placement], dict[str, jax.Array]] | None = None
    step: int | None = None


def open_source(text: str, tokenizer: str = '') -> Source:
    """See this file's head; shapes are known, and all that is wrong with the file but its numbers, before an array is read.

    ``tokenizer``: the spec of one, as 'sentencepiece,model=FILE', for another library's model whose file has none (npz).

    Raises:
        WeightsError: there is no such thing, or it is not of a model that is known here.
    """
    kind, colon, place = text.partition(':')
    if colon and kind in FORMATS:
        description, weights = importlib.import_module(FORMATS[kind]).open_model(str(Path(place).expanduser()))
        if tokenizer:
            description = dataclasses.replace(description, tokenizer=spec.parse(tokenizer, '--tokenizer', "'sentencepiece,model=FILE'"))
        return of_foreign(description, weights, text)
    if tokenizer:
        raise WeightsError(f'--tokenizer: {text} is a run, which has its own')
    whole = '@' not in text or (Path(text) / 'config.json').is_file()  # a folder's own name may have one
    workdir, at, step = (text, '', '') if whole else text.rpartition('@')
    if not (Path(workdir) / 'config.json').is_file() or at and not step.isdigit():
        raise WeightsError(f'{text!r} is no checkpoint; valid: {", ".join(f"{name}:…" for name in FORMATS)}, or a run\'s WORKDIR[@STEP]')
    return of_run(Path(workdir), int(step) if at else None)


def of_foreign(description: Description, weights: foreign.Weights, where: str) -> Source:
    shapes = {path: x.shape for path, x in description.abstract.items()}
    arrays = foreign.Arrays(weights, description.table, shapes, description.ignored)

    def read(wanted: Placement) -> dict[str, jax.Array]:
        return load.arrays(arrays, {path: x.sharding for path, x in wanted.items()})
    tokenizers = {'text': description.tokenizer} if description.tokenizer else {}
    return Source(where, {**description.config, 'tokenizers': tokenizers}, description.abstract, read, description)


def of_run(workdir: Path, step: int | None = None) -> Source:
    try:
        checkpoints = Checkpoints(workdir / 'checkpoints', read_only=True)
        leaves, step = checkpoints.leaves(step)
    except CheckpointError as error:
        raise WeightsError(str(error)) from None
    names = {path.removeprefix(prefix): path for prefix in ('params/', 'collections/batch_stats/') for path in leaves
             if path.startswith(prefix)}
    kept = {path: x for path, x in leaves.items() if path not in names.values() and path.startswith(('opt/', 'ema/', 'collections/'))}

    def read(wanted: Placement) -> dict[str, jax.Array]:
        found = checkpoints.read({names[path]: x for path, x in wanted.items()}, step)
        return {path: found[names[path]] for path in wanted}
    config = stages.configs(parts.freeze(json.loads((workdir / 'config.json').read_text(encoding='utf-8'))))[-1]
    return Source(f'{workdir}@{step}', config, {path: leaves[name] for path, name in names.items()}, read,
                  kept=kept, load_kept=lambda wanted: checkpoints.read(wanted, step), step=step)
