# Two commands need nothing but Python >= 3.11 and a package index: `make study` and `make test`.
PYTHON ?= python3
comma := ,
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := study,document,score,scale,serve,demo,dev,site,offline
# Node brings the runtime of pages with a model: the system's, or else that of the extra
EXTRAS := $(EXTRAS)$(if $(shell command -v npm),,$(comma)web)
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install browser study demo site test sync nbdev-test smoke
.PHONY: readme reference package web-speed scale clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(VENV)/.installed ## Make .venv with the study, its offline weights, the demo, and the tools for the tests and the site

$(VENV)/.installed: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "FinCompress needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== installing into $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

study: install ## Run the whole study offline on this CPU into outputs/local
	@echo "== running the notebooks with the profile local"
	$(BIN)/fincompress run --profile local --run-dir outputs/local
	@echo "== done: open outputs/local/report.html; the results are in outputs/local/results"

demo: install ## Serve a page on which the models of a run answer; RUN is its directory, default outputs/local
	$(BIN)/fincompress demo $(or $(RUN),outputs/local)

site: install ## Build the site from the reference run into _site
	@echo "== building the site (some minutes the first time: the library's notebooks are executed)"
	$(BIN)/python -c "from fincompress.app.pages.site import build_site; build_site('.')"
	@echo "== done: open _site/index.html"

browser: # tests of pages need one; Debian's is installed where that is allowed
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	|| echo "There is no Chromium or Chrome here, and the tests of pages need one: install the package chromium"

# Three workers on two cores: much of the time they wait for a browser, a server or a start.
test: install browser ## Check everything: notebooks, the smoke study, then the tests
	@echo "== 1/3 the notebooks' own examples"
	@$(MAKE) --no-print-directory nbdev-test
	@echo "== 2/3 the smoke study: every stage, tiny"
	@$(MAKE) --no-print-directory smoke
	@echo "== 3/3 the tests, the sync of notebooks and modules among them"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 10

nbdev-test: install ## Run the examples of every notebook
	cd nbs && OMP_NUM_THREADS=1 MPLBACKEND=agg ../$(BIN)/nbdev_test --n_workers 2

smoke: install ## Run every stage on a tiny model into outputs/smoke
	$(BIN)/fincompress run --profile smoke --run-dir outputs/smoke

sync: install ## Export the modules from the notebooks and clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: install ## Write README.md from nbs/index.ipynb
	$(BIN)/python -c "from fincompress.app.pages.readme import write_readme; write_readme('.')"

reference: install ## Run the reference study; DATA is the folder of the data files
	@test -d "$(DATA)" || { echo "give the folder of the data files: make reference DATA=..."; exit 2; }
	$(BIN)/fincompress run --profile reference --run-dir outputs/reference -p "data.data_folder=$(DATA)"

package: install ## Run the profile package and put its models into the package; DATA is the folder of the data files
	@test -d "$(DATA)" || { echo "give the folder of the data files: make package DATA=..."; exit 2; }
	$(BIN)/fincompress run --profile package --run-dir outputs/package -p "data.data_folder=$(DATA)"
	$(BIN)/python -c "from fincompress.app.deploy.package import package_models; package_models('outputs/package')"
	$(BIN)/python -c "from fincompress.app.web.floor import write_floor_results; \
		write_floor_results('outputs/package')"
	@echo "== done: fincompress models"

web-speed: install browser ## Measure the packaged models in a browser, on an idle machine
	$(BIN)/python -c "from fincompress.app.web.browser import write_browser_table; \
		print(write_browser_table('outputs/package'))"

scale: install ## Measure scoring on an idle machine (half an hour, needs wrk); ONLY is a part
	$(BIN)/python -c "from fincompress.app.scale.cost import write_scale; \
		print(write_scale('outputs/reference', '$(ONLY)'))"

clean: ## Remove the environment, the site and the local runs
	rm -rf $(VENV) build _site outputs/local outputs/smoke
