"""Learn a codebook of patches, whose codes are targets of masked image modelling, from the images of any source.

  python tools/train_codebook.py --config 'configs/RECIPE.py:data=DIR/*.tar' --data train --codes 8192 --out codes.npz --html codes.html
  python tools/train_codebook.py --source 'webdataset,files=DIR/*.tar' --size 112 --patch 8 --codes 8192 --out codes.npz

With a recipe, images are as its ops make them (crops and flips of epoch 0; ops from `patch_codes` on are left out); of a source
alone they are scaled and the middle is cut out. Patches are held in memory: 768 bytes each of 16 × 16 pixels, and 4 a feature.
"""
import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.data.bad import BadExample  # noqa: E402
from bigvlm.data.dataset import Dataset  # noqa: E402
from bigvlm.data.ops._codebook import Codebook, cut  # noqa: E402
from bigvlm.data.prepare import codebook as learning  # noqa: E402
from bigvlm.data.prepare.walk import spread, walk  # noqa: E402
from tools import _codebook_page, _side_options as side  # noqa: E402
from tools._data_opened import Options, Overrides  # noqa: E402

_DEFAULT = learning.Settings()
_HELD_OUT = 16  # every so many images are not learned from
OPTIONS = (
    ('--out', str, None, 'the codebook to write, .npz'), ('--html', str, '', 'a page of codes and of reconstructed images'),
    ('--codes', int, _DEFAULT.codes, 'how many'), ('--patch', int, _DEFAULT.patch, 'side of a patch in pixels'),
    ('--size', int, 0, 'scale images to this side (the size of the op patch_codes); 0: as the ops make them, of a source alone 224'),
    ('--images', int, 20_000, 'so many images, evenly spread; 0: all'), ('--per_image', int, 32, 'random patches of each'),
    ('--features', int, _DEFAULT.features, 'principal components by which patches are compared'),
    ('--whiten', float, _DEFAULT.whiten, '0: as pixels are, 1: all components alike'),
    ('--epochs', int, _DEFAULT.epochs, 'of k-means over the patches'), ('--seed', int, 0, 'of everything random'))


def learn(options: Options, overrides: Overrides) -> None:
    out = Path(options.out)
    if out.suffix != '.npz':
        raise RecipeError(f'--out: the name of a codebook ends in .npz, found {out}')
    for path in filter(None, (options.out, options.html)):
        if not Path(path).absolute().parent.is_dir():  # said now, not after hours
            raise RecipeError(f'no folder {Path(path).parent} to write {Path(path).name} to')
    settings = learning.Settings(*(getattr(options, name) for name in ('codes', 'patch', 'features', 'whiten', 'epochs', 'seed')))
    dataset = side.pictures(options, overrides, options.size, until='patch_codes')
    indices = spread(len(dataset), options.images)
    held_out = list(indices[_HELD_OUT - 1::_HELD_OUT]) or [indices[-1]]
    learned_from = sorted(set(indices) - set(held_out)) or held_out
    patch_NP = np.concatenate([piece for piece in _images(dataset, learned_from, options, 'patches', options.per_image)])
    print(f'patches      {len(patch_NP):,} of {len(learned_from):,} images, {patch_NP.nbytes / 1e9:.2f} GB')
    found = learning.learn(patch_NP, settings, 'codebook')
    known = learning.quality(found, np.array_split(patch_NP, -(-len(patch_NP) // 16384)))
    new = learning.quality(found, _images(dataset, held_out, options, 'held-out images'))
    about = dict(source=dataset.source.name, fingerprint=dataset.fingerprint, images=len(learned_from), patches=len(patch_NP),
                 settings=vars(settings), size=options.size, config=options.config, data=options.data if options.config else '',
                 learned=known.as_dict(), held_out=new.as_dict(), counts=new.counts_K.tolist())
    found = Codebook(found.patch, found.mean_P, found.projection_PF, found.inverse_FP, found.code_KF, about)
    found.save(out)
    os.chmod(out, 0o644)
    for name, one in (('learned from', known), ('held out', new)):
        print(f'{name:12} {one.counts_K.sum():,} patches: {(one.counts_K > 0).sum():,} of {len(found):,} codes used, perplexity '
              f'{one.perplexity:,.0f}; {1 - one.error / max(one.plain, 1e-12):.1%} of the variance of pixels, {one.psnr:.1f} dB')
    if options.html:
        shown = [side.picture(dataset.example(index), options.size) for index in held_out[:12]]
        Path(options.html).write_text(_codebook_page.page(out.name, found, new, shown), encoding='utf-8')
        print(f'page         {options.html}')
    print(f"op           dict(name='patch_codes', codebook='{out}'{f', size={options.size}' if options.size else ''})   # after the crop\n"
          f"objective    dict(name='masked_image', vocab={len(found)})")


def _images(dataset: Dataset, indices: Sequence[int], options: Options, what: str, count: int = 0) -> Iterator[np.ndarray]:
    """The patches of each image, uint8 [M, P]; `count` random ones, all for 0."""
    def work(index: int, example) -> np.ndarray:
        image_HWC = side.picture(example, options.size)
        try:
            return learning.patches_of(image_HWC, options.patch, count, np.random.default_rng((options.seed, index))) if count else \
                cut(image_HWC, options.patch)
        except ValueError as error:
            raise RecipeError(f'--patch: {error}; --size scales images') from None

    def read(index: int):
        return dataset.example(index, 0, substitute=False)
    usable = 0
    for _, found in walk(dataset.source, work, indices, options.workers, what, read):
        if not isinstance(found, BadExample):
            usable += 1
            yield found
    if not usable:
        raise RecipeError(f'--source: none of {len(indices)} images could be used: {dataset.lost_log.summary()}')


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog='train_codebook.py', description=__doc__, parents=[side.where()],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    side.add(parser, OPTIONS)
    return side.run(parser, arguments, learn)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
