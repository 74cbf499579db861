"""Train a SentencePiece model on the captions of a recipe's data set, or of tars.

  python tools/train_tokenizer.py --config configs/siglip_b16.py:data='my-*.tar' --vocab 8000 --out my.model
  python tools/train_tokenizer.py --files 'my-*.tar' --vocab 8000 --out my.model

It prints what to write into a recipe. (A recipe can also train one at first use: see `train_on` of sentencepiece.)
"""
import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from bigvlm import recipe  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.data.pipeline import Corpus  # noqa: E402
from bigvlm.data.tokenizers import sentencepiece  # noqa: E402

_DATA = flags.DEFINE_string('data', 'train', "Which of the recipe's data sets.")
_FILES = flags.DEFINE_multi_string('files', [], 'Instead of a recipe: a glob of webdataset tars; may be repeated.')
_VOCAB = flags.DEFINE_integer('vocab', 8000, 'The number of pieces, at most.', lower_bound=8)
_OUT = flags.DEFINE_string('out', None, 'Where to write the model.')
_LOWER = flags.DEFINE_bool('lower', False, 'Lower-case the captions; the recipe must then say lower=True too.')


def main(config: Mapping[str, Any] | None) -> None:
    if bool(config) == bool(_FILES.value):
        raise RecipeError('give either --config or --files')
    data, name = ((config['data'], _DATA.value) if config else
                  ({'files': {'source': {'name': 'webdataset', 'files': tuple(_FILES.value), 'require': ()}}}, 'files'))
    out = Path(_OUT.value)
    if not out.parent.is_dir():
        raise RecipeError(f'--out: no folder {out.parent}')
    texts = Corpus(data, name)
    sentencepiece.train((t.lower() for t in texts) if _LOWER.value else texts, _VOCAB.value, out)
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"dict(name='sentencepiece', model='{out}', sha256='{sha256}'{', lower=True' if _LOWER.value else ''})")


if __name__ == '__main__':
    flags.mark_flag_as_required('out')
    recipe.run(main, config_required=False)
