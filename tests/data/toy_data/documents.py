"""A source of texts in memory, which counts how often each is read."""
from collections import Counter

from bigvlm.data.bad import BadExample
from bigvlm.data.storage import Counts


class Documents:
    """`texts`: those of each example, None for one that is unusable. `together`: whether neighbours are read at once."""

    label_names = ()

    def __init__(self, texts, together=False, fails=0):
        self._texts, self._fails = texts, fails
        self.name, self.fingerprint, self.damage, self.io = 'documents', f'documents {hash(texts)}', {'cut': ['documents:9']}, Counts()
        self.reads = Counter()
        if together:
            self.read = self._read

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, index):
        texts = self.captions(index)
        return {'captions': texts, 'document': texts[0] if texts else None}

    def captions(self, index):
        self.reads[index] += 1
        if self._fails:
            self._fails -= 1
            raise OSError('the network hiccuped')
        if self._texts[index] is None:
            raise BadExample('broken')
        return self._texts[index]

    def describe(self, index):
        return f'documents:{index}'

    def _read(self, first, stop):
        self.io.add(0)
        return [self[i] if self._texts[i] is not None else BadExample('broken') for i in range(first, stop)]
