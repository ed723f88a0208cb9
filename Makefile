# Commands for users and developers; `make` lists them
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2
ALONE  := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: help venv demo test examples notebooks readme docs bench lint clean

help:                  ## List the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $(STAMP)

venv: $(STAMP)         ## Set up .venv with all requirements

demo: $(STAMP)         ## Fine-tune a transformer on movie reviews, or CHECKPOINT=... on DATA=my.csv
	$(BIN)/python -m blurlike.demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(DATA),--data "$(DATA)") \
		$(if $(TEXT_COL),--text-col "$(TEXT_COL)") $(if $(LABEL_COL),--label-col "$(LABEL_COL)") $(if $(OUT),--out "$(OUT)")

test: $(STAMP)         ## Run the library's notebooks as tests, then tests/; WORKERS=2 processes of one thread each
	$(ALONE) $(BIN)/python tools/test_notebooks.py '^nbs/(?!examples/|index)' --workers $(WORKERS)
	$(ALONE) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

examples: $(STAMP)     ## Run the examples and the README's notebook as tests
	$(ALONE) $(BIN)/python tools/test_notebooks.py '^nbs/(examples/|index)' --workers $(WORKERS)

notebooks: $(STAMP)    ## Execute the notebooks and keep their outputs
	HF_HUB_OFFLINE=1 $(BIN)/python tools/notebooks.py
	$(BIN)/nbdev-clean

readme: $(STAMP)       ## Write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: $(STAMP)         ## Build the site in _docs
	$(BIN)/python tools/docs.py

bench: $(STAMP)        ## Compare the speed with Trainer and pipeline; FULL=1 takes hours, ONLY=data,prediction selects
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed $(if $(FULL),--full) $(if $(ONLY),--only "$(ONLY)")

lint: $(STAMP)         ## Check the code with ruff, and the size of the cells in the notebooks
	$(BIN)/ruff check
	$(BIN)/python tools/cells.py

clean:                 ## Remove everything that was built, including .venv
	rm -rf $(VENV) _docs build dist *.egg-info demo_model
