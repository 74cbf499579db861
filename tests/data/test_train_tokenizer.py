import ast
import subprocess
import sys
from pathlib import Path

from bigvlm.data.pipeline import build_tokenizers
from tests.data.fakes import sample, write_tar

TOOL = Path(__file__).parents[2] / 'tools' / 'train_tokenizer.py'


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


def test_from_tars_to_a_recipe(tmp_path):
    write_tar(tmp_path / 'a.tar', {str(i): sample(i) for i in range(9)})
    done = run('--files', tmp_path / '*.tar', '--vocab', 60, '--out', tmp_path / 'own.model', '--lower')
    assert done.returncode == 0, done.stderr
    call = ast.parse(done.stdout.strip().splitlines()[-1], mode='eval').body
    spec = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    tokenizer = build_tokenizers({'text': spec})['text']
    assert tokenizer.decode(tokenizer(['Photo number 3'], 20)[0]) == 'photo number 3'


def test_errors_are_one_line(tmp_path):
    for arguments in (('--out', tmp_path / 'x'), ('--files', '/nowhere/*.tar', '--out', tmp_path / 'x')):
        done = run(*arguments)
        assert done.returncode and done.stderr.count('\n') == 1 and 'files' in done.stderr
