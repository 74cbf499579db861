"""Parts: found by file name, checked against their own signatures, with errors that say what would be valid."""

import sys
import textwrap

import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError

FILES = {
    '__init__.py': '',
    'zero_shot.py': """
        from dataclasses import dataclass
        from collections import OrderedDict as zeroshot  # not this file's own
        @dataclass
        class ZeroShot:
            lr: float
            layers: tuple = ()
            tokenizers: dict = None
        """,
    'flip.py': """
        def flip(*, axis=1):
            return ('flip', axis)
        """,
    'picky.py': """
        from bigvlm.core.parts import RecipeError
        def picky(size=1):
            raise RecipeError(f'size: {size} is odd')
        """,
    'helper.py': 'def other(): pass',
    '_hidden.py': 'def hidden(): pass',
    'needs.py': 'import a_library_that_is_not_there\ndef needs(): pass'}


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """``mine``: a package of the user's own."""
    for name, text in FILES.items():
        path = tmp_path / 'mine' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    yield 'mine'
    for name in [n for n in sys.modules if n.split('.')[0] == 'mine']:
        del sys.modules[name]


def build(where='towers.image', given=None, **spec):
    return parts.build('mine', spec, where, **(given or {}))


def error(**kwargs):
    with pytest.raises(RecipeError) as caught:
        build(**kwargs)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_a_file_is_the_registry():
    assert parts.names('mine') == ['flip', 'needs', 'picky', 'zero_shot']
    made = build(name='zero_shot', lr=.1, layers=[1, [2]])
    assert type(made).__name__ == 'ZeroShot' and made.lr == .1
    assert made.layers == (1, (2,)), 'lists become tuples'
    assert build(name='flip', axis=2) == ('flip', 2)
    assert 'vit' in parts.names('bigvlm.towers') and parts.find('bigvlm.towers', 'vit', '').__name__ == 'ViT'
    assert 'dual_encoder' not in parts.names('bigvlm.objectives'), 'a helper is no part'


def test_a_dotted_name_is_a_module_of_the_users_own():
    assert parts.build('bigvlm.towers', dict(name='mine.flip', axis=3), 'towers.image') == ('flip', 3)


def test_given_arguments_go_to_the_parts_that_declare_them():
    given = dict(tokenizers={'text': 1}, datasets=2)
    assert build(name='zero_shot', lr=1., given=given).tokenizers == {'text': 1}
    assert build(name='flip', given=given) == ('flip', 1)
    assert 'towers.image.tokenizers: unknown field' in error(name='zero_shot', lr=1., tokenizers={}, given=given)


def test_unknown_parts_are_named_with_those_there_are():
    message = error(name='zeroshot')
    assert message.startswith("towers.image.name: no part 'zeroshot' in mine; did you mean 'zero_shot'?")
    assert 'flip, needs, picky, zero_shot' in message
    assert 'did you mean' not in error(name='qqqqq')
    for name in ('no.such.module', 'mine.no', 'flip.deeper', ''):
        assert f"no part {name!r} in mine" in error(name=name)
    assert 'defines no class or function named like the file' in error(name='helper')
    assert error(lr=1.).startswith('towers.image: a part needs a name; one of flip')


def test_unknown_and_missing_fields_are_named_with_the_valid_ones():
    message = error(name='zero_shot', lr=1., layer=(1,))
    assert message == "towers.image.layer: unknown field; did you mean 'layers'? (valid: layers, lr, tokenizers)"
    assert error(name='zero_shot') == 'towers.image.lr: this field is required'
    assert error(name='flip', parent=1).startswith('towers.image.parent: unknown field')


def test_a_missing_library_is_not_a_missing_part():
    with pytest.raises(ImportError, match='a_library_that_is_not_there'):
        build(name='needs')


def test_what_a_part_refuses_is_named_in_full():
    assert error(name='picky', size=3) == 'towers.image: size: 3 is odd'


def test_bind_checks_now_and_makes_later():
    make = parts.bind('mine', dict(name='flip'), 'x')
    assert make() == make() == ('flip', 1)
    with pytest.raises(RecipeError, match='x.axes: unknown field'):
        parts.bind('mine', dict(name='flip', axes=1), 'x')


def test_modules_of_flax_keep_their_own_fields_to_themselves():
    assert not {'parent', 'name'} & set(parts.fields(parts.find('bigvlm.towers', 'vit', '')))
