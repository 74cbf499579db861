"""What a trained model makes of your photos: zero-shot names, and search by text, as a page with pictures.

    python tools/demo.py --checkpoint runs/clip --images "photos/*.jpg" --names dog,cat,car --texts "a dog in the snow;two people"
    python tools/demo.py --checkpoint hf:openai/clip-vit-base-patch32 --images 'DIR/val-*.tar' --html demo.html

Images are files, or those of image-text tars; then their own captions are searched for, too, if no --texts are given.
"""

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

import bigvlm  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.data.bad import BadExample  # noqa: E402
from bigvlm.data.ops.decode import pixels  # noqa: E402
from bigvlm.data.sources.webdataset import Webdataset  # noqa: E402
from bigvlm.evals.examples import spread  # noqa: E402
from bigvlm.figures import Gallery, Item, Row, jpeg  # noqa: E402
from bigvlm.report import data_page, shown  # noqa: E402

SHOWN = 12  # rows of a gallery


def photos(pattern: str, limit: int) -> tuple[list[bytes], list[str]]:
    """(encoded images, a caption of each or ''). RecipeError if there are none."""
    if pattern.endswith('.tar'):
        source = Webdataset(pattern)
        found = []
        for index in range(min(limit, len(source))):
            try:
                found.append(source[index])
            except BadExample:
                continue  # the page shows what can be shown
        return [example['image'] for example in found], [next(iter(example.get('captions', ())), '') for example in found]
    files = sorted(glob.glob(os.path.expanduser(pattern)))[:limit]
    if not files:
        raise RecipeError(f'--images: no file is {pattern!r}')
    return [Path(file).read_bytes() for file in files], [''] * len(files)


def classified(model, images: Sequence[bytes], image_ND: np.ndarray, names: Sequence[str], templates: str) -> Gallery:
    """The likeliest names of some images."""
    found = model.classify(image_ND, names, templates)
    rows = []
    for i in spread(len(images), SHOWN):
        best = np.argsort(-found.probability_NC[i])[:5]
        rows.append(Row(Item(image=jpeg(pixels(images[i], exif=True))),
                        tuple(Item(text=names[c], value=float(found.probability_NC[i, c])) for c in best)))
    return Gallery('Zero-shot names', tuple(rows))


def searched(model, images: Sequence[bytes], image_ND: np.ndarray, texts: Sequence[str], own: Sequence[int]) -> Gallery:
    """The likeliest images of each text. ``own``: the image whose caption a text is, -1 for none."""
    found = model.search(texts, image_ND, k=5)
    return Gallery('Images found by text', tuple(
        Row(Item(text=text), tuple(
            Item(image=jpeg(pixels(images[i], exif=True)), value=float(score), right=None if own[m] < 0 else bool(i == own[m]))
            for i, score in zip(found.index_MK[m], found.score_MK[m])))
        for m, text in enumerate(texts)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='demo.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--checkpoint', required=True, help='as bigvlm.load takes it')
    add('--images', required=True, help="files as 'DIR/*.jpg', or image-text tars as 'DIR/*.tar'")
    add('--names', default='', help='classes, with commas between them')
    add('--templates', default='photo', help='prompts of the classes: a set of evals/prompts.py, or a file')
    add('--texts', default='', help='what to search for, with semicolons between; of tars: their captions by default')
    add('--limit', type=int, default=1000, help='images, at most')
    add('--tokenizer', default='', help="of a checkpoint that has none, as 'sentencepiece,model=FILE'")
    add('--html', default='demo.html', help='the page')
    options = parser.parse_args(arguments)
    try:
        sections = pages(options)
    except RecipeError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 2
    Path(options.html).write_text(data_page.page(f'{options.checkpoint} on {options.images}', (), sections), encoding='utf-8')
    print(options.html)
    return 0


def pages(options: argparse.Namespace) -> list[str]:
    images, captions = photos(options.images, options.limit)
    texts, own = list(filter(None, map(str.strip, options.texts.split(';')))), [-1] * len(images)
    if not texts:
        own = [i for i in spread(len(captions), SHOWN) if captions[i]]
        texts = [captions[i] for i in own]
    names = list(filter(None, map(str.strip, options.names.split(','))))
    if not names and not texts:
        raise RecipeError('--names, --texts: neither is given, and the images have no captions')
    model = bigvlm.load(options.checkpoint, tokenizer=options.tokenizer)
    image_ND = model.encode_images(images)
    sections = []
    if names:
        figure = classified(model, images, image_ND, names, options.templates)
        sections.append(shown.answers(figure, f'{len(images)} images, {len(names)} names'))
    if texts:
        sections.append(shown.answers(searched(model, images, image_ND, texts, own), f'among {len(images)} images, best first'))
    return sections


if __name__ == '__main__':
    sys.exit(main())
