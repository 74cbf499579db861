"""``python -m bigvlm.report WORKDIR``: writes WORKDIR/report.html anew from what the run has recorded."""

import sys
from pathlib import Path

from bigvlm.report import write

if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
    sys.exit('usage: python -m bigvlm.report WORKDIR   (an existing work directory)')
print(write(sys.argv[1]))
