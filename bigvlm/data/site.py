"""Where this site keeps the data sets that recipes name: a TOML file with a table for each set and split."""
import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from bigvlm.core.parts import RecipeError

_EXAMPLE = "cc12m.train = {name = 'webdataset', files = '/data/cc12m/{00000..01242}.tar'}"
_DOCS = 'docs/datasets.md says how to get the known sets'


def resolve(set: str, split: str) -> dict[str, Any]:
    """The source's spec in table [SET.SPLIT] of the site file. Raises RecipeError if there is none.

    The file is $BIGVLM_SITE; without it ~/.config/bigvlm/site.toml, or site.toml in the working directory.
    """
    path = site_file()
    try:
        with open(path, 'rb') as file:
            sets = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f'the site file {path} cannot be read: {error}') from None
    splits = _entry(sets, set, 'set', f'{path} has no set', path)
    spec = _entry(splits, split, 'split', f'{path} has {set!r} without split', path)
    if 'name' not in spec:
        raise RecipeError(f'[{set}.{split}] of {path} must have a name, that of a source; such as {_EXAMPLE}')
    if spec['name'] == 'named':
        raise RecipeError(f'name: [{set}.{split}] of {path} is named itself; name a source with files')
    return dict(spec)


def site_file() -> Path:
    """The site file in use, whether it is there or not, if the environment names it; else the first that is there."""
    if said := os.environ.get('BIGVLM_SITE'):
        path = Path(said).expanduser()
        if not path.is_file():
            raise RecipeError(f'BIGVLM_SITE names {said!r}, which is no file')
        return path
    places = (Path.home() / '.config' / 'bigvlm' / 'site.toml', Path('site.toml').absolute())
    for path in places:
        if path.is_file():
            return path
    raise RecipeError(f'data sets are named in a site file, and there is none: set $BIGVLM_SITE, or write {places[0]} or '
                      f'{places[1]}; such as {_EXAMPLE}; {_DOCS}')


def _entry(table: dict[str, Any], key: str, field: str, problem: str, path: Path) -> dict[str, Any]:
    found = table.get(key)
    if isinstance(found, dict):
        return found
    known = sorted(name for name, value in table.items() if isinstance(value, dict))
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise RecipeError(f'{field}: {problem} {key!r}{hint} (there are: {", ".join(known) or "none"}); an entry is {_EXAMPLE}; {_DOCS}')
