"""An op for tests with a bug that one example triggers."""


def explode(at: int = 3):
    def op(example, rng):
        if example['value'][0] == at:
            raise ZeroDivisionError('a bug')
        return example
    return op
