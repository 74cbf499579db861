"""What a source that wraps another passes on as it is."""

from collections.abc import Callable
from typing import Any


def pass_on(source: Any, of: Any, read: Callable) -> None:
    """Gives ``source`` the label names, damage and counts of ``of``; ``read``, which reads neighbours together, only if ``of`` has one:
    whoever asks whether a source can do that asks for this attribute."""
    source.label_names = tuple(of.label_names)
    source.damage = dict(getattr(of, 'damage', {}))
    source.reads_together = getattr(of, 'reads_together', True)
    if hasattr(of, 'io'):
        source.io = of.io
    if hasattr(of, 'read'):
        source.read = read
