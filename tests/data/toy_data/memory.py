"""A source in memory, as a part of its own."""
import numpy as np

from bigvlm.data.bad import BadExample


class Memory:
    """A source in memory: examples are numbers; `bad`: index -> reason; `flaky`: index -> failures before it works."""

    label_names = ()

    def __init__(self, count=10, bad=None, flaky=None, captions=3):
        self._count, self._bad, self._flaky, self._captions = count, bad or {}, dict(flaky or {}), captions
        self.name, self.fingerprint = 'memory', f'memory {count}'

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if index in self._bad:
            raise BadExample(self._bad[index])
        if self._flaky.get(index, 0):
            self._flaky[index] -= 1
            raise OSError('the network hiccuped')
        return {'captions': self.captions(index), 'value': np.float32([index, -index])}

    def read(self, first, stop):
        """Examples first to stop at once, as order='blocks' wants them."""
        def one(index):
            try:
                return self[index]
            except BadExample as bad:
                return bad
        return [one(index) for index in range(first, stop)]

    def captions(self, index):
        return tuple(f'caption {k} of {index}' for k in range(self._captions))

    def describe(self, index):
        return f'memory:{index}'
