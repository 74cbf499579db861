import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops.render_text import render_text

UNIFONT = Path('/usr/share/fonts/opentype/unifont/unifont.otf')
CLIPPO = dict(background=127, ink=0)


def draw(op, text):
    return op({'caption': text}, None)['text_image']


def ink(image):
    """bool [H, W]: darker than the background."""
    return image[..., 0] < 120


def lines(image, height=16):
    return [bool(ink(image)[y:y + height].any()) for y in range(0, len(image), height)]


def letters(image):
    """How many parts the ink of the first line has, parted by empty columns."""
    columns = ink(image)[:16].any(0).astype(int)
    return int((np.diff(columns, prepend=0) == 1).sum())


def test_picture_is_grey_with_dark_text_in_lines():
    image = draw(render_text(), 'A man.')
    assert image.shape == (224, 224, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
    assert (image[16:] == 127).all() and image.min() < 40 and image.max() == 127
    assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
    assert letters(image) == 5
    assert np.array_equal(image, draw(render_text(), 'a  MAN. ')) and not np.array_equal(image, draw(render_text(lower=False), 'A man.'))
    inverse = draw(render_text(background=0, ink=255), 'a man.')
    assert inverse.max() == 255 and np.abs(127 - inverse * (127 / 255) - image).max() <= 1


def test_letters_are_pillows():
    """Each letter of a line is what Pillow draws, in the largest size whose line is no higher than 16."""
    font = next(f for size in range(16, 0, -1) if sum((f := ImageFont.load_default(size)).getmetrics()) <= 16)
    line = draw(render_text(), 'ghij')[:16, :, 0].astype(int)
    at = 0
    for letter in 'ghij':
        canvas = Image.new('L', (40, 16), 0)
        ImageDraw.Draw(canvas).text((10, (16 - sum(font.getmetrics())) // 2), letter, 255, font)
        found = np.asarray(canvas).astype(int)
        found = found[:, found.max(0) >= 32]
        shown = 127 - line[:, at + 1:at + 1 + found.shape[1]]
        assert np.abs(shown - found * 127 / 255).max() <= 1
        at += max(4, 1 + found.shape[1])


def test_lines_wrap_anywhere_and_the_rest_is_cut():
    op = render_text(size=64)
    assert lines(draw(op, 'x')) == [True, False, False, False]
    width = np.flatnonzero(ink(draw(op, 'x')).any(0))[-1] + 1
    row = 64 // width
    assert lines(draw(op, 'x' * row))[:2] == [True, False] and lines(draw(op, 'x' * (row + 2)))[:2] == [True, True]
    full = draw(op, 'x' * 100)
    assert lines(full) == [True] * 4 and np.array_equal(full, draw(op, 'x' * 1000))
    assert np.array_equal(full[:16], full[16:32])
    tight = render_text(size=5 * width)
    spaced = draw(tight, 'xxxxx xxxxx')  # the space at the border takes no place in the next line
    assert np.array_equal(spaced[:16], spaced[16:32])
    assert lines(draw(render_text(size=40), 'x' * 99), 16) == [True, True, False]  # 8 pixels are left over


def test_letters_that_no_font_has():
    op = render_text(unknown=.5)
    box, two = draw(op, 'a漢b'), draw(op, 'a字b')
    assert letters(box) == 3 and np.array_equal(box, two)
    framed = ink(box)[:16, :][:, 8:18]
    assert framed[1].sum() == framed[14].sum() == 8 and framed[7].sum() <= 4
    with pytest.raises(BadExample, match='lacks the letters'):
        draw(op, '漢字 a')
    assert draw(render_text(unknown=1.), '漢字').min() == 0
    with pytest.raises(BadExample, match='lacks'):
        draw(render_text(unknown=0.), 'a 漢 b')
    for nothing in ('', ' \n', '\u200d\ufe0f'):
        with pytest.raises(BadExample, match='no caption'):
            draw(op, nothing)
    assert np.array_equal(draw(op, 'a\u200db'), draw(op, 'ab'))


def some_font():
    for folder in ('/usr/share/fonts', '/Library/Fonts', '/System/Library/Fonts'):
        for path in sorted(Path(folder).rglob('DejaVuSans.ttf')):
            return str(path)
    return None


@pytest.mark.skipif(not some_font(), reason='no DejaVuSans.ttf')
def test_a_font_of_ones_own():
    op = render_text(font=some_font())
    text = 'Привет, naïve café'
    assert letters(draw(op, text)) >= 15
    with pytest.raises(BadExample, match='lacks'):
        draw(render_text(), 'Привет')
    both = render_text(font=(some_font(), some_font()))
    assert np.array_equal(draw(op, text), draw(both, text))
    assert np.array_equal(draw(op, 'cafe\u0301'), draw(op, 'caf\u00e9'))  # composed first


@pytest.mark.skipif(not UNIFONT.is_file(), reason=f'no {UNIFONT}')
def test_unifont_is_drawn_pixel_by_pixel():
    image = draw(render_text(font=str(UNIFONT)), 'a photo 東京')
    assert {*np.unique(image)} == {0, 127} and letters(image) >= 8


def test_threads_draw_the_same():
    texts = [f'{chr(97 + i)} {i} words' for i in range(20)]
    expected = [draw(render_text(), text) for text in texts]
    op, found = render_text(), {}

    def work(number):
        found[number] = [draw(op, text) for text in texts]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(np.array_equal(a, b) for made in found.values() for a, b in zip(made, expected))


@pytest.mark.parametrize('fields, message', [
    (dict(size=8), 'font_px'), (dict(font_px=0), 'font_px'), (dict(font='/nowhere.otf'), 'no file'), (dict(ink=300), 'ink'),
    (dict(background=.5), 'background'), (dict(unknown=2.), 'unknown'), (dict(font=__file__), 'cannot draw'),
    (dict(font_px=1), 'too few')])
def test_impossible_fields(fields, message):
    with pytest.raises(RecipeError, match=message):
        render_text(**fields)
