"""Whole blocks of a source, read in one request each, kept until their examples are used, and read ahead of need."""
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bigvlm.data.bad import usable

_READERS = 8  # requests under way at a time


class BlockCache:
    """Raw examples of `source` by index, a block of `block` read at once by `source.read`; at most `most` blocks are kept.

    A block goes when each of its examples was asked for once, or when it is the one longest unused.
    """

    def __init__(self, source: Any, block: int, most: int):
        self._source, self.block, self.most = source, block, most
        self._blocks: OrderedDict[int, tuple[Future, list[int]]] = OrderedDict()  # block -> (its examples, [how many are left])
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_READERS, 'bigvlm-blocks')

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadExample where the source says so; what reading the block raised, and then it is read anew next time."""
        number, place = divmod(index, self.block)
        future, left = self._asked(number)
        try:
            examples = future.result()
        except BaseException:
            self._drop(number, future)
            raise
        with self._lock:
            left[0] -= 1
            if left[0] <= 0 and number in self._blocks and self._blocks[number][0] is future:
                del self._blocks[number]
        return usable(examples[place])

    def __len__(self) -> int:
        """How many blocks are kept now."""
        return len(self._blocks)

    def close(self) -> None:
        """Forget all blocks and stop reading ahead; whoever asks again starts anew."""
        with self._lock:
            self._blocks.clear()
            self._readers.shutdown(wait=False, cancel_futures=True)
            self._readers = ThreadPoolExecutor(_READERS, 'bigvlm-blocks')

    def want(self, index: int) -> None:
        """Start reading the block of an example that will be asked for soon."""
        self._asked(index // self.block)

    def _asked(self, number: int) -> tuple[Future, list[int]]:
        with self._lock:
            if number not in self._blocks:
                first = number * self.block
                stop = min(first + self.block, len(self._source))
                while len(self._blocks) >= self.most:
                    self._blocks.popitem(last=False)
                self._blocks[number] = self._readers.submit(self._source.read, first, stop), [stop - first]
            self._blocks.move_to_end(number)
            return self._blocks[number]

    def _drop(self, number: int, future: Future) -> None:
        with self._lock:
            if number in self._blocks and self._blocks[number][0] is future:
                del self._blocks[number]
