"""A trained model to be used, from a run or from another library's files: embeddings, classification by prompts, search.

    import bigvlm
    model = bigvlm.load('hf:openai/clip-vit-base-patch32')      # or runs/x, runs/x@1000, open_clip:FILE, npz:FILE
    model.classify(['a.jpg', 'b.jpg'], ['dog', 'cat'])
    model.search(['a dog in the snow'], model.encode_images(photos))

N images, M texts, C classes, D width, K found, H×W pixels, L tokens.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from bigvlm import functions, model as model_lib, prepared
from bigvlm.core import layout as layout_lib, mesh as mesh_lib, parts, paths
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.pipeline import build_tokenizers
from bigvlm.evals import prompts
from bigvlm.evals.embed import Embedder
from bigvlm.evals.zero_shot import class_scorer
from bigvlm.interop.source import Source, open_source
from bigvlm.objectives import all_pairs
from bigvlm.state import abstract_variables, expected_shapes

Picture = str | Path | bytes | Image.Image | np.ndarray


class Classified(NamedTuple):
    """``probability_NC``: float32, rows sum to 1 (of a sigmoid model: each its own). ``names``: of the columns."""
    probability_NC: np.ndarray
    names: tuple[str, ...]

    def best(self) -> list[str]:
        return [self.names[c] for c in self.probability_NC.argmax(axis=1)]


class Found(NamedTuple):
    """Of each text the likeliest images, best first: ``index_MK`` int, ``score_MK`` float32."""
    index_MK: np.ndarray
    score_MK: np.ndarray


def load(checkpoint: str, *, mesh: Mapping[str, int] | None = None, dtype: str = '', objective: str = '', tokenizer: str = '',
         batch: int = 64) -> 'Model':
    """The model of a checkpoint, as ``interop/source.py`` reads it.

    Args:
        checkpoint: ``hf:DIR``, ``hf:ORG/NAME``, ``open_clip:FILE``, ``timm:FILE``, ``npz:FILE``, ``WORKDIR`` or ``WORKDIR@STEP``.
        mesh: axis sizes as in a recipe; all devices share the batch by default, ``{'fsdp': 8}`` splits the parameters too.
        dtype: of compute; the recipe's by default, float32 of other libraries' models. objective: whose embeddings; the model's first
            that has any by default. tokenizer: of files that have none, as 'sentencepiece,model=FILE'. batch: examples at a time.

    Raises:
        RecipeError: there is no such checkpoint, it is damaged, or of a model that is not known here.
    """
    return Model(open_source(checkpoint, tokenizer), mesh=mesh, dtype=dtype, objective=objective, batch=batch)


class Model:
    """See ``load``. ``config``: the recipe's groups that make it; ``params``: nested by module, as they are stored on ``mesh``."""

    def __init__(self, source: Source, *, mesh: Mapping[str, int] | None = None, dtype: str = '', objective: str = '',
                 batch: int = 64):
        self.source, self.config, self.where = source, source.config, source.where
        self.mesh = mesh_lib.make_mesh(mesh or {'data': -1})
        self._fields = dict(remat='none', **({'dtype': dtype} if dtype else {}))
        self.module = prepared.module_of(source, **self._fields)
        self.objective = objective or prepared.first_with_embeddings(self.module)
        if self.objective not in self.module.objectives:
            raise RecipeError(f'objective: there is no {self.objective!r} (there are: {", ".join(self.module.objectives)})')
        self._place(source)
        self._functions = functions.Functions(functions.jitted(self.module, self.objective, self.stored),
                                              self.module.objectives[self.objective](), self.params, self.collections)
        self._embedder: Embedder = functions.embedder(self._functions, self.mesh, batch)
        self._tokenizers: dict[str, Any] = {}

    def _place(self, source: Source) -> None:
        """Reads every array to where it is stored."""
        kinds = self.config.get('kinds') or model_lib.kinds(self.module)
        params, collections = abstract_variables(self.module, {kind: expected_shapes(self.module, kind) for kind in kinds})
        flat = dict(sorted(paths.flatten(params).items()))
        self.stored = layout_lib.make(self.config.get('layout', (('.*', 'fsdp'),)), flat, self.mesh)
        places = self.stored.shardings(self.mesh, flat)
        whole = mesh_lib.replicated(self.mesh)
        stats = paths.flatten(collections.pop('batch_stats', {}))

        def wanted(arrays, where):
            return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(path)) for path, x in arrays.items()}
        found = source.load(wanted(flat, places.get) | wanted(stats, lambda path: whole))
        self._average(source, found, places)
        self.params = paths.unflatten({path: found[path] for path in flat})
        self.collections = {'batch_stats': paths.unflatten({path: found[path] for path in stats})} if stats else {}
        for name, arrays in collections.items():  # queues and the like, which a run has
            held = {f'collections/{name}/{path}': x for path, x in paths.flatten(arrays).items()}
            read = source.load_kept(wanted(held, lambda path: whole)) if source.load_kept else {}
            self.collections[name] = paths.unflatten({path.removeprefix(f'collections/{name}/'): x for path, x in read.items()})

    def _average(self, source: Source, found: dict[str, jax.Array], places: Mapping[str, Any]) -> None:
        """Puts the averaged parameters in place where the run is evaluated by them (``eval_params``)."""
        prefix = f'ema/{self.config.get("eval_params")}/'
        averaged = {path: x for path, x in source.kept.items() if path.startswith(prefix)}
        if averaged:
            there = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places[path.removeprefix(prefix)])
                     for path, x in averaged.items()}
            found |= {path.removeprefix(prefix): x for path, x in source.load_kept(there).items()}

    def plain(self) -> model_lib.Model:
        """The module with attention that runs on any platform."""
        return model_lib.from_config(self.config, **self._fields, attention='xla')

    # --- images and texts ---

    @functools.cached_property
    def image_ops(self) -> tuple[Mapping[str, Any], ...]:
        """The data ops, after 'decode', that prepare an image."""
        return prepared.image_ops(self.source, self.objective)

    @functools.cached_property
    def length(self) -> int:
        """Tokens of a text."""
        return prepared.text_length(self.source, self.objective)

    @property
    def tokenizer(self) -> Any:
        """The recipe's tokenizer of texts; trained ones need the run's data."""
        name = prepared.tokenizer_of(self.config)
        if name not in self._tokenizers:
            if name not in self.config.get('tokenizers', {}):
                raise RecipeError(f"{self.where}: has no tokenizer; valid: one of ours, tokenizer='sentencepiece,model=FILE' "
                                  f'(--tokenizer of commands), or texts as token ids, int32 [M, {self.length}]')
            specs = {name: self.config['tokenizers'][name]}
            self._tokenizers = build_tokenizers(specs, self.config.get('data', {}))
        return self._tokenizers[name]

    def prepare(self, image: Picture) -> np.ndarray:
        """uint8 [H, W, 3], as the model's images are prepared. RecipeError for what is no image."""
        steps = [parts.build('bigvlm.data.ops', spec, 'ops') for spec in (dict(name='decode'), *self.image_ops)]
        example = {'image': _encoded(image)}
        try:
            for step in steps:
                example = step(example, np.random.default_rng(0))
        except BadExample as error:
            raise RecipeError(f'images: {image if isinstance(image, (str, Path)) else type(image).__name__}: {error}') from None
        return example['image']

    def encode_images(self, images: Sequence[Picture]) -> np.ndarray:
        """Files, encoded bytes, PIL images or uint8 [H, W, 3] arrays -> float32 [N, D] of length one (per token for FILIP)."""
        if isinstance(images, Picture) and np.ndim(images) != 4:
            raise RecipeError('images: found one; valid: a list of them')
        return self._embedder.images(_Prepared(self, images))

    def encode_texts(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Texts, or token ids int32 [M, L] -> float32 [M, D] of length one."""
        _check_several(texts, 'texts')
        ids_ML = texts if isinstance(texts, np.ndarray) else self.tokenizer(self._clean(texts), self.length)
        return self._embedder.texts(np.asarray(ids_ML, np.int32))

    def score(self, image_ND: np.ndarray, text_MD: np.ndarray) -> np.ndarray:
        """The objective's similarities, float32 [N, M]; cosines, if it has no other."""
        return self._embedder.score(image_ND, text_MD)

    # --- what they are for ---

    def classify(self, images: Sequence[Picture] | np.ndarray, names: Sequence[str],
                 templates: str | Sequence[str] = 'photo') -> Classified:
        """Zero-shot: each name's embedding is the normalised mean of its prompts'. ``templates``: as in evals/prompts.py; each
        holds '{}' once. ``images``: as for ``encode_images``, or embeddings [N, D]."""
        _check_several(names, 'names')
        wordings = prompts.templates(templates if isinstance(templates, str) else tuple(templates))
        text_PD = self.encode_texts([wording.replace('{}', name) for name in names for wording in wordings])
        score_NC = class_scorer(self._embedder, text_PD, len(wordings))(self._embedded(images))
        learned = self.params.get(self.objective, {})
        scale = np.exp(np.asarray(learned['t'])) if 't' in learned else 1. / self._functions.objective.temperature
        if np.ndim(scale):  # all_pairs: one for each type of pairs
            scale = scale[all_pairs.TYPES.index('image_text')]
        elif 'b' in learned:  # SigLIP: each pair by itself
            return Classified(1. / (1. + np.exp(-(score_NC * scale + np.asarray(learned['b'])))), tuple(names))
        odds_NC = np.exp(scale * (score_NC - score_NC.max(axis=1, keepdims=True)))
        return Classified(odds_NC / odds_NC.sum(axis=1, keepdims=True), tuple(names))

    def search(self, texts: Sequence[str], images: Sequence[Picture] | np.ndarray, k: int = 5) -> Found:
        """The ``k`` likeliest of the images (or embeddings [N, D]) for each text."""
        score_MN = self.score(self._embedded(images), self.encode_texts(texts)).T
        index_MK = np.argsort(-score_MN, axis=1, kind='stable')[:, :k]
        return Found(index_MK, np.take_along_axis(score_MN, index_MK, axis=1))

    def _embedded(self, images: Sequence[Picture] | np.ndarray) -> np.ndarray:
        already = isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating)
        return images if already else self.encode_images(images)

    def _clean(self, texts: Sequence[str]) -> list[str]:
        """As the run's evaluations do with the texts that they read."""
        canonical = any(spec.get('canonicalize') for spec in self.config.get('evals', {}).values())
        return [prompts.canonicalize(text) for text in texts] if canonical else list(texts)


def _check_several(texts: Any, what: str) -> None:
    if isinstance(texts, str):  # a sequence, too: of letters
        raise RecipeError(f'{what}: found one text, {texts!r}; valid: a list of them')


class _Prepared(Sequence):
    """Images that are prepared when they are read."""

    def __init__(self, model: Model, images: Sequence[Picture]):
        self.model, self.images = model, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.model.prepare(self.images[index])


def _encoded(image: Picture) -> bytes:
    """The bytes of an image file; of pixels, a lossless one."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).expanduser().read_bytes()
        except OSError as error:
            raise RecipeError(f'images: cannot read {image}: {error.strerror}') from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise RecipeError(f'images: found an array {image.dtype}{list(image.shape)}; valid: uint8 [H, W, 3]')
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, 'PNG', compress_level=0)
    return file.getvalue()
