"""A user's lines about examples, found by what they are of: a jsonl file of any size, of which 16 bytes a line are held."""
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.prepare import hashes


class KeyedLines:
    """The records of a jsonl file by their `by`: 'index' (of the example in its source), 'name' (as `describe` names it), or any
    field that records and examples share. RecipeError for lines that are no records, lack it, or repeat another's.

    N lines.
    """

    def __init__(self, path: Path, by: str = 'index'):
        self.path, self.by = path, by
        found, places, start = hashes.Column(), hashes.Column(), 0
        with open(path, 'rb') as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    found.add(_hash(self._record(line, f'line {number}')[by]))
                    places.add(start)
                start += len(line)
        order_N = np.argsort(found.values, kind='stable')
        self._hash_N, self._place_N = found.values[order_N], places.values[order_N]
        self._used_N = np.zeros(len(order_N), bool)
        self._file = open(path, 'rb')  # noqa: SIM115  as long as this object lives
        if len(same := np.flatnonzero(self._hash_N[1:] == self._hash_N[:-1])):
            twice = self._at(int(same[0]))[by]
            raise RecipeError(f'{path}: found two lines of {by} {twice!r}; valid: one for each example')

    def __len__(self) -> int:
        return len(self._hash_N)

    @property
    def unused(self) -> int:
        """How many lines nobody has asked for."""
        return int((~self._used_N).sum())

    def get(self, value: Any) -> Mapping[str, Any] | None:
        """The record of an example, or None."""
        wanted = np.uint64(_hash(value))
        place = int(np.searchsorted(self._hash_N, wanted))
        if place == len(self) or self._hash_N[place] != wanted:
            return None
        self._used_N[place] = True
        record = self._at(place)
        return record if str(record[self.by]) == str(value) else None

    def _at(self, place: int) -> Mapping[str, Any]:
        start, data = int(self._place_N[place]), b''
        while b'\n' not in data:
            if not (more := os.pread(self._file.fileno(), 65_536, start + len(data))):
                break
            data += more
        return self._record(data.partition(b'\n')[0], f'byte {start}')

    def _record(self, line: bytes, where: str) -> Mapping[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RecipeError(f'{self.path}, {where}: no JSON ({error})') from None
        if not isinstance(record, dict) or self.by not in record:
            raise RecipeError(f'{self.path}, {where}: found no {self.by!r}; valid: a JSON object with it (--by)')
        return record


def _hash(value: Any) -> int:
    return hashes.of_bytes(str(value).encode())
