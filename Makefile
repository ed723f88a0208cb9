# Everything a newcomer or a developer runs. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help venv demo test notebooks readme docs bench lint clean

help:                  ## List what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $(STAMP)

venv: $(STAMP)         ## Set up .venv with all requirements

demo: $(STAMP)         ## Fine-tune a transformer on movie reviews; CHECKPOINT=... DATA=my.csv for your own
	$(BIN)/python -m blurlike.demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(DATA),--data "$(DATA)") \
		$(if $(TEXT_COL),--text-col "$(TEXT_COL)") $(if $(LABEL_COL),--label-col "$(LABEL_COL)") $(if $(OUT),--out "$(OUT)")

test: $(STAMP)         ## Run all tests: the notebooks, then tests/
	HF_HUB_OFFLINE=1 $(BIN)/nbdev-test --n-workers 1 --do-print
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

notebooks: $(STAMP)    ## Run the notebooks and keep their outputs
	HF_HUB_OFFLINE=1 $(BIN)/python tools/notebooks.py
	$(BIN)/nbdev-clean

readme: $(STAMP)       ## Write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: $(STAMP)         ## Build the site into _docs
	$(BIN)/python tools/docs.py

bench: $(STAMP)        ## Compare speeds with Trainer, pipeline and bare loops; FULL=1 for hours, ONLY=training,prediction for some
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed $(if $(FULL),--full) $(if $(ONLY),--only "$(ONLY)")

lint: $(STAMP)         ## Check the code with ruff, and the size of the cells in the notebooks
	$(BIN)/ruff check
	$(BIN)/python tools/cells.py

clean:                 ## Remove what was built, .venv included
	rm -rf $(VENV) _docs build dist *.egg-info demo_model
