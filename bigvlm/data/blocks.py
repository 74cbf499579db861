"""Whole blocks of a source, read in one request each, kept until their examples are used, and read ahead of need."""
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bigvlm.data.bad import usable

_READERS = 8  # requests under way at a time


class BlockCache:
    """Raw examples of `source` by index, a block of `block` read at once by `source.read`; at most `most` blocks are kept.

    A block goes when each of its examples was asked for, or when it is the one longest unused. `skipped(index)`: whether
    an example is known not to be asked for.
    """

    def __init__(self, source: Any, block: int, most: int, skipped: Callable[[int], bool] = lambda index: False):
        self._source, self.block, self.most, self._skipped = source, block, most, skipped
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._lock = threading.Lock()
        self._wanted: queue.SimpleQueue[_Block] = queue.SimpleQueue()
        self._readers = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadExample where the source says so; what reading the block raised, and then it is read anew next time."""
        number, place = divmod(index, self.block)
        block = self._asked(number)
        try:
            examples = block.examples.result()
        except BaseException:
            self._drop(number, block)
            raise
        with self._lock:
            block.left.discard(place)
        if not block.left:
            self._drop(number, block)
        return usable(examples[place])

    def __len__(self) -> int:
        """How many blocks are kept now."""
        return len(self._blocks)

    def want(self, index: int) -> None:
        """Start reading the block of an example that will be asked for soon."""
        self._asked(index // self.block)

    def close(self) -> None:
        """Forget all blocks; whoever asks again starts anew."""
        with self._lock:
            for block in self._blocks.values():
                block.examples.cancel()
            self._blocks.clear()

    def _asked(self, number: int) -> '_Block':
        with self._lock:
            if number not in self._blocks:
                while len(self._blocks) >= self.most:
                    self._blocks.popitem(last=False)
                first = number * self.block
                self._blocks[number] = _Block(first, min(first + self.block, len(self._source)), self._skipped)
                self._wanted.put(self._blocks[number])
                if self._readers < _READERS:  # daemons: one that hangs in a read must not keep the process from ending
                    self._readers += 1
                    threading.Thread(target=self._run, name='bigvlm-blocks', daemon=True).start()
            self._blocks.move_to_end(number)
            return self._blocks[number]

    def _run(self) -> None:
        while True:
            block = self._wanted.get()
            if not block.examples.set_running_or_notify_cancel():
                continue
            try:
                block.examples.set_result(self._source.read(block.first, block.stop))
            except BaseException as error:  # noqa: BLE001  it belongs to whoever asks
                block.examples.set_exception(error)

    def _drop(self, number: int, block: '_Block') -> None:
        with self._lock:
            if self._blocks.get(number) is block:
                del self._blocks[number]


class _Block:
    """Examples `first` to `stop` - 1, in the future; `left`: the places that were not asked for yet."""

    def __init__(self, first: int, stop: int, skipped: Callable[[int], bool]):
        self.first, self.stop, self.examples = first, stop, Future()
        self.left = {place for place in range(stop - first) if not skipped(first + place)}
