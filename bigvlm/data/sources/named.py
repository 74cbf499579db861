"""A data set by its name: the site file says which source it is and where its files lie."""
from typing import Any

from bigvlm.core import parts
from bigvlm.data import site


def named(set: str, split: str, **overrides: Any) -> Any:
    """The source in table [SET.SPLIT] of the site file, with `overrides` of its fields: that very source, nothing around it."""
    spec = site.resolve(set, split) | overrides
    return parts.build('bigvlm.data.sources', spec, f'{site.site_file()} [{set}.{split}]')
