"""Texts packed into rows of fixed length: language-model batches without padding to speak of, at random access.

Array legend: L tokens of a row, R rows of a window.
"""
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._packing import Packing, pack

_WINDOWS = 16  # kept, so that the rows of a window tokenise it once


class Packed:
    """The texts of source `of`, `window` consecutive examples at a time, packed into `rows` rows of `length` tokens.

    Item j is row j % rows of window j // rows: `KEY` int32 [L], `KEY_segment` int32 [L] (1, 2, … for each text, 0 for
    padding) and `KEY_position` int32 [L] (from 0 in each text). `texts` names the field that holds an example's texts, one
    or several. Each is tokenised whole, with its start and end; one that is longer than a row is cut into pieces, texts of
    their own. As many as the rows can hold are taken in order, and packed first-fit decreasing; then the others where there
    is room. What finds none is dropped. `packing` says how much that was, and `survey` beforehand: more `rows` drop less and
    fill less, a longer `window` does both better. With fewer pieces than rows a row is empty: a BadExample. A window that
    cannot be read raises OSError; examples without a usable text are left out, and counted.
    """

    label_names: tuple[str, ...] = ()

    def __init__(self, of: Mapping[str, Any], length: int, rows: int, window: int = 64, tokenizer: str = 'text',
                 texts: str = 'captions', key: str = 'text', tokenizers: Mapping[str, Any] | None = None):
        for field, value in dict(length=length, rows=rows, window=window).items():
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f'{field}: a positive number, found {value!r}')
        if not tokenizers or tokenizer not in tokenizers:
            raise RecipeError(f'tokenizer: the recipe has no tokenizer {tokenizer!r} (there are: {", ".join(tokenizers or ()) or "none"}); '
                              'one that is to be trained is trained on the texts themselves, not on packed ones')
        if not hasattr(tokenizers[tokenizer], 'encode'):
            raise RecipeError(f'tokenizer: {tokenizer!r} has no encode(text), which gives the ids of a whole text')
        self._of = parts.build('bigvlm.data.sources', of, 'of', tokenizers=tokenizers)
        self._tokenizer, self._texts, self._key = tokenizers[tokenizer], texts, key
        self._length, self._rows, self._window = length, rows, window
        self.name = f'{self._of.name} (packed)'
        known = json.dumps([self._of.fingerprint, length, rows, window, texts])
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()[:16]
        self.damage = getattr(self._of, 'damage', {})
        if hasattr(self._of, 'io'):
            self.io = self._of.io
        self._kept: OrderedDict[int, Future] = OrderedDict()
        self._met = np.zeros(len(self) // rows, bool)
        self._packing = Packing(length=length)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return -(-len(self._of) // self._window) * self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'row {index} of {len(self)}')
        window, row = divmod(index, self._rows)
        found = self._packed(window)[row]
        if not found[f'{self._key}_segment'][0]:
            raise BadExample('an empty row: rows= is more than the texts of a window')
        return dict(found)

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Rows `first` to `stop` - 1, each window read and tokenised once."""
        found: list[dict[str, Any] | BadExample] = []
        for index in range(first, stop):
            try:
                found.append(self[index])
            except BadExample as bad:
                found.append(bad)
        return found

    def captions(self, index: int) -> tuple[str, ...]:
        """None: a row holds pieces of many texts."""
        return ()

    def describe(self, index: int) -> str:
        """'row 3 of docs.jsonl[64] to docs.jsonl[127]'."""
        window, row = divmod(index, self._rows)
        first, stop = self._span(window)
        return f'row {row} of {self._of.describe(first)} to {self._of.describe(stop - 1)}'

    @property
    def packing(self) -> Packing:
        """Of the windows met so far, each counted once."""
        return self._packing

    def survey(self, windows: int = 16) -> Packing:
        """Of so many windows, evenly spread over the source: what to choose `rows` by. They are read and tokenised now."""
        total, found = len(self) // self._rows, Packing(length=self._length)
        for window in np.unique(np.linspace(0, total - 1, min(windows, total)).astype(int)):
            found += self._pack(int(window))[1]
        return found

    def _packed(self, window: int) -> list[dict[str, np.ndarray]]:
        """The rows of a window, packed by whoever asks first; the others wait for it."""
        with self._lock:
            mine = window not in self._kept
            if mine:
                self._kept[window] = Future()
                while len(self._kept) > _WINDOWS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(window)
            future = self._kept[window]
        if mine:
            try:
                made, counts = self._pack(window)
                with self._lock:
                    if not self._met[window]:
                        self._met[window] = True
                        self._packing += counts
                future.set_result(made)
            except BaseException as error:
                with self._lock:  # so that the next one tries again
                    if self._kept.get(window) is future:
                        del self._kept[window]
                future.set_exception(error)
                raise
        return future.result()

    def _span(self, window: int) -> tuple[int, int]:
        """Its first example and the one after its last."""
        return window * self._window, min((window + 1) * self._window, len(self._of))

    def _pack(self, window: int) -> tuple[list[dict[str, np.ndarray]], Packing]:
        documents, unusable = self._documents(*self._span(window))
        pieces = [ids[start:start + self._length] for ids in documents for start in range(0, len(ids), self._length)]
        rows, dropped = pack([len(piece) for piece in pieces], self._rows, self._length)
        made = [self._row([pieces[number] for number in row]) for row in rows]
        packed = sum(len(pieces[number]) for row in rows for number in row)
        empty = sum(not row for row in rows)
        return made, Packing(packed, sum(len(pieces[number]) for number in dropped), self._rows, empty, unusable, self._length)

    def _documents(self, first: int, stop: int) -> tuple[list[list[int]], int]:
        """The ids of each text, and how many examples have none."""
        found, unusable = [], 0
        for texts in self._read(first, stop):
            ids = [self._tokenizer.encode(text) for text in texts if not text.isspace() and text]
            found += ids
            unusable += not ids
        return found, unusable

    def _read(self, first: int, stop: int) -> list[tuple[str, ...]]:
        """The texts of each example; together if the source can, which is one request instead of many."""
        if hasattr(self._of, 'read'):
            return [() if isinstance(example, BadExample) else _tuple(example.get(self._texts)) for example in self._of.read(first, stop)]
        found = []
        for index in range(first, stop):
            try:
                found.append(_tuple(self._of.captions(index) if self._texts == 'captions' else self._of[index].get(self._texts)))
            except BadExample:
                found.append(())
        return found

    def _row(self, pieces: Sequence[list[int]]) -> dict[str, np.ndarray]:
        ids_L = np.full(self._length, self._tokenizer.pad_id, np.int32)
        segment_L, position_L = np.zeros(self._length, np.int32), np.zeros(self._length, np.int32)
        start = 0
        for number, piece in enumerate(pieces, 1):
            place = slice(start, start + len(piece))
            ids_L[place], segment_L[place], position_L[place] = piece, number, np.arange(len(piece))
            start += len(piece)
        return {self._key: ids_L, f'{self._key}_segment': segment_L, f'{self._key}_position': position_L}


def _tuple(texts: Any) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts or ())
