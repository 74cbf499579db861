"""Captions as pictures, for one tower that reads both (CLIPPO, arXiv 2212.08045).

Array legend: P pixels of a line's height, W of a letter's width, H and W pixels of the picture, C colours.
"""
import threading
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import _text

_NOBODYS = '\U0010ffff'  # a code point that is no character and never will be: what a font draws for it is its sign of lack


def render_text(size: int = 224, font_px: int = 16, font: str | Sequence[str] = (), lower: bool = True, background: int = 127,
                ink: int = 0, unknown: float = .5, key: str = 'caption', out: str = 'text_image') -> Callable:
    """Draws the text at `key` into a picture at `out`, uint8 [size, size, 3], in lines of `font_px` pixels.

    Letters follow each other as wide as their ink, one pixel apart, and go to the next line wherever they meet the border;
    what does not fit is cut. They stand alone: none is joined to another, or written from the right. `font`: a TrueType or
    OpenType file, or several, of which the first that has a letter draws it (CLIPPO: GNU Unifont, unifont.otf and
    unifont_upper.otf, drawn pixel by pixel in lines of 16); () is Pillow's own, which has the letters of ASCII and no others.
    A letter that no font has is drawn as a box; BadExample if more than the share `unknown` of the letters are such, or if
    there are none. `background`, `ink`: brightness from 0 to 255.
    """
    if not 0 < font_px <= size:
        raise RecipeError(f'font_px: the height of a line, from 1 to size={size}, found {font_px}')
    for field, value in dict(background=background, ink=ink).items():
        if not isinstance(value, int) or not 0 <= value <= 255:
            raise RecipeError(f'{field}: a brightness from 0 to 255, found {value!r}')
    _text.share('unknown', unknown)
    letters = _Letters((font,) if isinstance(font, str) else font, font_px)
    shades = np.rint(background + (ink - background) * np.arange(256) / 255).astype(np.uint8)

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        text = _plain(example.get(key) or '', lower)
        if not text:
            raise BadExample(f'no {key}')
        if sum(letters.lacks(letter) for letter in text) > unknown * len(text.replace(' ', '')):
            raise BadExample('the font lacks the letters')
        return {**example, out: np.repeat(shades[_lay(text, letters, size)][..., None], 3, -1)}
    return op


def _plain(text: str, lower: bool) -> str:
    """Composed letters, single spaces, nothing invisible (controls, joiners, variation selectors)."""
    text = ' '.join(unicodedata.normalize('NFC', text.lower() if lower else text).split())
    return ''.join(c for c in text if unicodedata.category(c)[0] != 'C' and not '\ufe00' <= c <= '\ufe0f')


def _lay(text: str, letters: '_Letters', size: int) -> np.ndarray:
    """How much ink there is where, uint8 [size, size]."""
    ink_HW = np.zeros((size, size), np.uint8)
    x = y = 0
    for letter in text:
        glyph_PW = letters[letter]
        if x + glyph_PW.shape[1] > size and x:
            x, y = 0, y + letters.height
        if y + letters.height > size:
            break
        if letter == ' ' and not x:
            continue  # no line begins with a space
        part = ink_HW[y:y + letters.height, x:x + glyph_PW.shape[1]]
        part[:] = glyph_PW[:, :part.shape[1]]
        x += glyph_PW.shape[1]
    return ink_HW


class _Letters:
    """The ink of letters, uint8 [P, W], drawn when first asked for and kept; all fonts in lines of `height` pixels."""

    _SPACING, _LEAST = 1, 4  # pixels: before a letter's ink, and of the narrowest letter (a space has no ink)
    _VISIBLE = 32  # of 255: what is fainter, at the sides of smoothed letters, would only push them apart

    def __init__(self, files: Sequence[str], height: int):
        self.height = height
        self._fonts = [_open(file, height) for file in files or ('',)]
        self._signs = [self._ink(font, _NOBODYS).tobytes() for font in self._fonts]
        self._known: dict[str, np.ndarray] = {}
        self._lacking: set[str] = set()
        self._lock = threading.Lock()  # a font draws for one thread at a time

    def __getitem__(self, letter: str) -> np.ndarray:
        if letter not in self._known:
            with self._lock:
                self._known[letter] = self._draw(letter)
        return self._known[letter]

    def lacks(self, letter: str) -> bool:
        """Whether no font has it."""
        self[letter]  # if it was not drawn yet, it is now
        return letter in self._lacking

    def _draw(self, letter: str) -> np.ndarray:
        for font, sign in zip(self._fonts, self._signs):
            ink_PW = self._ink(font, letter)
            if ink_PW.tobytes() != sign or letter.isspace():
                break
        else:
            self._lacking.add(letter)
            ink_PW = np.zeros((self.height, max(self._LEAST, self.height // 2)), np.uint8)
            ink_PW[1:-1] = 255
            ink_PW[2:-2, 1:-1] = 0
        columns = np.flatnonzero(ink_PW.max(0) >= self._VISIBLE)
        ink_PW = ink_PW[:, columns[0]:columns[-1] + 1] if len(columns) else ink_PW[:, :0]
        return np.pad(ink_PW, ((0, 0), (self._SPACING, max(0, self._LEAST - self._SPACING - ink_PW.shape[1]))))

    def _ink(self, font: ImageFont.FreeTypeFont, letter: str) -> np.ndarray:
        margin = self.height  # letters may begin before their place, and be wider than high
        canvas = Image.new('L', (int(font.getlength(letter)) + 2 * margin, self.height))
        top = (self.height - sum(font.getmetrics())) // 2
        ImageDraw.Draw(canvas).text((margin, top), letter, 255, font)
        return np.asarray(canvas)


def _open(file: str, height: int) -> ImageFont.FreeTypeFont:
    """The font in the largest size whose lines are no higher than `height`."""
    if file and not Path(file).expanduser().is_file():
        raise RecipeError(f'font: no file {file!r}')
    for size in range(height, 0, -1):
        try:
            font = (ImageFont.truetype(Path(file).expanduser(), size, layout_engine=ImageFont.Layout.BASIC) if file
                    else ImageFont.load_default(size))
        except (OSError, ImportError) as error:
            raise RecipeError(f'font: cannot draw with {file or "the font of Pillow"} ({error})') from None
        if sum(font.getmetrics()) <= height:
            return font
    raise RecipeError(f'font_px: {height} pixels are too few for {file or "the font of Pillow"}')
