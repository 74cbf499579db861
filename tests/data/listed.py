"""A source out of a list, for tests."""
from bigvlm.data.bad import BadExample


class Listed:
    """`examples`: dicts, or the reason why one cannot be used."""

    label_names = ()

    def __init__(self, examples, name='listed', fingerprint='listed 1'):
        self.examples, self.name, self.fingerprint = list(examples), name, fingerprint
        self.asked = []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.asked.append(index)
        example = self.examples[index]
        if isinstance(example, str):
            raise BadExample(example)
        if isinstance(example, Exception):
            raise example
        return example

    def captions(self, index):
        return self[index].get('captions', ())

    def describe(self, index):
        return f'{self.name}:{index}'


class Together(Listed):
    """One whose neighbours can be read together; `requests` says which were."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.requests = []

    def read(self, first, stop):
        self.requests.append((first, stop))
        return [BadExample(e) if isinstance(e, str) else e for e in self.examples[first:stop]]
