"""ArrayRecord files by record number. The index is each file's own; files must be on this machine, or mounted."""
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from bigvlm.core.parts import RecipeError
from bigvlm.data import storage
from bigvlm.data.bad import BadExample
from bigvlm.data.sources._file_index import indices

_ENDS = 64 << 10  # bytes at the beginning and the end that stand for a file's content
_OPEN = 256  # readers that are kept, each of which holds its file's index in memory (8 bytes a record)
_UNREADABLE = 'no readable ArrayRecord file'
# What array_record's own documentation says is best for random access, and a small buffer: records are images.
_OPTIONS, _BUFFER = 'readahead_buffer_size:0,max_parallelism:0', 32 << 10


class ArrayRecords:
    """`read(file, first, stop)` gives records as bytes, BadExample for damaged ones. `counts`: records of each file.

    `io` counts a request for each piece asked for and the bytes of its records, which are compressed in the file.
    `damage`: files that cannot be read at all.
    """

    def __init__(self, files: Sequence[str]):
        for url in files:
            if storage.is_remote(url):
                raise RecipeError(f'files: ArrayRecord is read from files of this machine, found {url}; mount the bucket')
        self._urls, self.io = tuple(files), storage.Counts()
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()
        index = indices('array_record', files, _scan)
        self.counts = [int(entry.entries_E[0]) for entry in index]
        self.digests = [entry.digest.hex() for entry in index]
        lost = [url.rpartition('/')[2] for url, count in zip(files, self.counts) if not count]
        self.damage = {_UNREADABLE: lost} if lost else {}

    def read(self, file: int, first: int, stop: int) -> list[bytes | BadExample]:
        """Records first..stop-1 of `file`, in one request unless some are damaged."""
        if not self.counts[file]:
            return [BadExample(_UNREADABLE)] * (stop - first)
        reader = self._reader(file)
        try:
            found = reader.read(first, stop)
        except RuntimeError as error:  # its only kind, for storage and damage alike
            if 'orrupted' not in str(error):
                raise OSError(f'{self._urls[file]}: {error}') from error
            if stop - first == 1:
                return [BadExample('damaged record')]
            return [record for row in range(first, stop) for record in self.read(file, row, row + 1)]
        if len(found) != stop - first:
            raise OSError(f'{self._urls[file]}: {len(found)} records of {first}..{stop - 1}')
        self.io.add(sum(map(len, found)))
        return found

    def _reader(self, file: int) -> ArrayRecordReader:
        with self._lock:
            if reader := self._readers.get(file):
                self._readers.move_to_end(file)
                return reader
        storage.stat(self._urls[file])  # the reader opens what is not there, as a file without records
        reader = ArrayRecordReader(self._urls[file], options=_OPTIONS, file_reader_buffer_size=_BUFFER)
        with self._lock:
            self._readers[file] = reader
            while len(self._readers) > _OPEN:
                self._readers.popitem(last=False)  # closed when the last thread that reads from it is done
        return reader


def _scan(url: str, size: int, write: Callable[[np.ndarray], None], seen: Callable[[int], None]) -> bytes:
    """Writes the number of records; of a file that is cut or is none, 0. The digest is of both ends of the file."""
    seen(size)
    reader = ArrayRecordReader(url, options=_OPTIONS, file_reader_buffer_size=_BUFFER)
    write(np.array([reader.num_records() if reader.ok() else 0]))
    ends = storage.read(url, 0, min(size, _ENDS)) + storage.read(url, max(0, size - _ENDS))
    return hashlib.sha256(ends).digest()
