"""A page about a codebook: its codes as pictures, the most used first, and images beside what their codes say of them.

H, W pixels; K codes.
"""
import io
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from PIL import Image

from bigvlm.data.ops._codebook import Codebook
from bigvlm.data.prepare.codebook import Quality
from bigvlm.report import data_page
from bigvlm.report.data_page import Example, Side
from bigvlm.report.svg import data_uri

_CODES = 1024  # are shown


def page(title: str, codebook: Codebook, quality: Quality, images_HWC: Sequence[np.ndarray]) -> str:
    """A whole HTML page; `quality` is of images that were not learned from, as `images_HWC` are."""
    about, found = codebook.about, quality.as_dict()
    facts = [('codes', f'{len(codebook):,}'), ('patch', f'{codebook.patch} px'), ('source', str(about.get('source', ''))),
             ('fingerprint', str(about.get('fingerprint', ''))), ('learned from', f'{about.get("patches", 0):,} patches'),
             ('used', f'{found["used"]:,}'), ('perplexity', f'{found["perplexity"]:,.0f}'),
             ('variance explained', f'{found["explained"]:.1%}'), ('PSNR', f'{found["psnr"]:.1f} dB')]
    order_K = np.argsort(-quality.counts_K, kind='stable')[:_CODES]
    codes = (f'<h2>Codes, the most used first</h2><div class="card"><img alt="codes" '
             f'style="width:100%;max-width:900px;image-rendering:pixelated" src="{data_uri(png(grid(codebook, order_K)), "png")}"></div>')
    used = data_page.charts('Use of codes by held-out patches', [data_page.histogram('patches of a code', quality.counts_K)])
    shown = [Example([('image', str(number))], [Side('as it is', [('image', image_HWC)], []), Side('its codes', [
        ('codes', codebook.picture(codebook.codes(image_HWC), image_HWC.shape[0] // codebook.patch))], [])])
        for number, image_HWC in enumerate(images_HWC)]
    return data_page.page(title, facts, [codes, used, data_page.examples('Held-out images', shown)])


def grid(codebook: Codebook, code_K: np.ndarray, gap: int = 1) -> np.ndarray:
    """uint8 [H, W, 3]: the pictures of codes in a nearly square grid, black between them and where there are none."""
    columns = int(np.ceil(np.sqrt(len(code_K))))
    rows = -(-len(code_K) // columns)
    side = codebook.patch
    tile_KHWC = np.zeros((rows * columns, side + gap, side + gap, 3), np.uint8)
    tile_KHWC[:len(code_K), :side, :side] = rearrange(codebook.pixels(code_K), 'k (p q c) -> k p q c', p=side, q=side)
    return rearrange(tile_KHWC, '(r c) p q k -> (r p) (c q) k', r=rows)


def png(image_HWC: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, 'PNG')
    return file.getvalue()
