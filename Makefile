PYTHON ?= python3
PY = .venv/bin/python

.PHONY: install quickstart test

# setup.py changes -> install again; otherwise nothing to do.
.venv/.installed: setup.py
	@start=$$(date +%s); \
	test -x $(PY) || $(PYTHON) -m venv .venv; \
	$(PY) -m pip install -q -e '.[dev]' && touch $@ && \
	echo "install: $$(( $$(date +%s) - start )) s"

install: .venv/.installed

quickstart: .venv/.installed
	@start=$$(date +%s); \
	$(PY) -m bigvlm.train --config configs/quickstart.py --workdir runs/quickstart && \
	echo "quickstart: $$(( $$(date +%s) - start )) s; report: runs/quickstart/report.html"

test: .venv/.installed
	$(PY) -m pytest -n 2
