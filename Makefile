# Two commands need nothing but Python >= 3.11 and a package index: `make study` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install study test sync nbdev-test smoke readme clean reference

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(VENV)/.installed ## Make .venv with the study, its offline weights and the developers' tools

$(VENV)/.installed: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FinCompress needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "== installing into $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[study,dev,offline]"
	@touch $@

study: install ## Run the whole study offline on this CPU into outputs/local
	@echo "== running the nine notebooks with the profile local"
	$(BIN)/fincompress run --profile local --run-dir outputs/local
	@echo "== done: open outputs/local/report.html; the results are in outputs/local/results"

test: install ## Check everything: notebooks, the smoke study, then the tests
	@echo "== 1/3 the notebooks' own examples"
	@$(MAKE) --no-print-directory nbdev-test
	@echo "== 2/3 the smoke study: all nine notebooks, tiny"
	@$(MAKE) --no-print-directory smoke
	@echo "== 3/3 the tests, the sync of notebooks and modules among them"
	$(BIN)/python -m pytest

nbdev-test: install ## Run the examples of every notebook
	cd nbs && OMP_NUM_THREADS=1 MPLBACKEND=agg ../$(BIN)/nbdev_test --n_workers 2

smoke: install ## Run all nine notebooks on a tiny model into outputs/smoke
	$(BIN)/fincompress run --profile smoke --run-dir outputs/smoke

sync: install ## Export the modules from the notebooks and clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: install ## Write README.md from nbs/index.ipynb
	$(BIN)/python -c "from fincompress.app.report import write_readme; write_readme('.')"

reference: install ## Run the reference study; SOURCE is a folder with the original files of PhraseBank and FiQA
	@test -d "$(SOURCE)" || { echo "give the folder of the original data files: make reference SOURCE=..."; exit 2; }
	$(BIN)/fincompress run --profile reference --run-dir outputs/reference -p data.source=$(SOURCE)

clean: ## Remove the environment and the local runs
	rm -rf $(VENV) outputs/local outputs/smoke
