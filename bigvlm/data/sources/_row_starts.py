"""Where the rows of csv, tsv and jsonl files begin: a scan of bytes at the speed of memory, chunk by chunk.

Array legend: N bytes of a chunk, E line ends, Q quotation marks, S rows.
"""
from collections.abc import Iterable, Iterator

import numpy as np

_LF, _CR, _QUOTE = b'\n\r"'
_SOME = 1024  # quotation marks looked at together


def row_starts(chunks: Iterable[bytes], separator: str = '', start: int = 0) -> Iterator[np.ndarray]:
    """Offsets [S] of the rows that begin in each chunk, as Python's csv module sees rows; blank lines are none.

    `separator` of the fields: within quotation marks, line ends belong to the field. '' is for text without quoting
    (jsonl). `start`: the offset of the first byte.
    """
    quoting = _Quoting(separator) if separator else None
    after_end = True  # the byte before was the end of a row, or the beginning of the file
    for chunk in filter(None, chunks):
        text_N = np.frombuffer(chunk, np.uint8)
        ends_E = np.flatnonzero((text_N == _LF) | (text_N == _CR))
        if quoting:
            ends_E = ends_E[~quoting.quoted(chunk, text_N, ends_E)]
        starts_S = ends_E + 1
        if after_end:
            starts_S = np.concatenate([[0], starts_S])
        after_end = len(starts_S) > 0 and starts_S[-1] == len(chunk)
        starts_S = starts_S[:-1] if after_end else starts_S
        first_S = text_N[starts_S]
        yield start + starts_S[(first_S != _LF) & (first_S != _CR)]
        start += len(chunk)


class _Quoting:
    """The automaton of csv (RFC 4180, with the liberties that Python's csv module takes), for many bytes at once.

    A quotation mark opens only at the beginning of a field; within, two in a row stand for one, and another one closes.
    Elsewhere it is a letter like others, up to the end of the field. If no mark is such a letter, marks open and close
    in turns, and the parity of their number says what is quoted: that is what is computed, and from each offender anew.
    """

    def __init__(self, separator: str):
        self._separator = separator.encode()
        self._opens = np.zeros(256, bool)  # after which bytes a mark opens; after a mark: that one closed, this reopens
        self._opens[[_LF, _CR, _QUOTE, ord(separator)]] = True
        self._inside = False  # the state between two chunks: within quotation marks,
        self._plain = False  # or in a field where marks are letters,
        self._before = _LF  # and the last byte

    def quoted(self, chunk: bytes, text_N: np.ndarray, ends_E: np.ndarray) -> np.ndarray:
        """bool [E]: whether each line end of the chunk (all of them, at `ends_E`) is within quotation marks."""
        marks_Q = np.flatnonzero(text_N == _QUOTE)
        begun_inside, kept = self._inside, []
        at = 0
        if self._plain:
            at = self._skip(chunk, 0, marks_Q, ends_E)
        while at < len(marks_Q):
            some = marks_Q[at:at + _SOME]
            opening = some[int(self._inside)::2]
            before = text_N[opening - 1]
            if len(opening) and opening[0] == 0:
                before[0] = self._before
            wrong = np.flatnonzero(~self._opens[before])
            good = some[:2 * wrong[0] + int(self._inside)] if len(wrong) else some
            kept.append(good)
            self._inside ^= bool(len(good) & 1)
            at += len(good)
            if len(wrong):
                at = self._skip(chunk, int(some[len(good)]), marks_Q, ends_E)
        self._before = chunk[-1]
        if not kept:
            return np.full(len(ends_E), begun_inside)
        return (np.searchsorted(np.concatenate(kept), ends_E) & 1).astype(bool) ^ begun_inside

    def _skip(self, chunk: bytes, offset: int, marks_Q: np.ndarray, ends_E: np.ndarray) -> int:
        """The number of the first mark after the field that `offset` lies in, whose marks are letters."""
        line = np.searchsorted(ends_E, offset)
        line_end = int(ends_E[line]) if line < len(ends_E) else len(chunk)
        field_end = chunk.find(self._separator, offset, line_end)
        field_end = line_end if field_end < 0 else field_end
        self._plain = field_end == len(chunk)
        return int(np.searchsorted(marks_Q, field_end))
