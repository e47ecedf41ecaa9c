# Everything a person does with a checkout. `make chat` and `make test` do all the set-up themselves.
# The first Python that is new enough, else whichever there is: the set-up says what is wrong with it.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; command -v python3)
BIN := .venv/bin

.PHONY: chat test lint format bench docs pictures setup clean

chat: setup  ## set up, then chat with the embedded model
	@$(BIN)/localai chat smollm2-135m

test: setup  ## set up, then run the whole suite
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: setup  ## style, types, layers, generated pages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_layers.py
	@$(BIN)/python scripts/help_pages.py --check
	@$(BIN)/python scripts/recommendation_page.py --check

format: setup  ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup  ## write the generated pages anew
	@$(BIN)/python scripts/help_pages.py
	@$(BIN)/python scripts/machine_page.py
	@$(BIN)/python scripts/recommendation_page.py

pictures: setup  ## take the README's pictures anew
	@$(BIN)/python scripts/pictures.py

bench: setup  ## measure this checkout against its references
	@$(BIN)/python benchmarks/engine.py

setup:
	@test -n "$(PYTHON)" || { echo "error: no Python found" >&2; echo "hint: install Python 3.11 or newer (Debian: sudo apt-get install python3 python3-venv python3-dev; macOS: brew install python)" >&2; exit 1; }
	@$(PYTHON) scripts/setup_venv.py

clean:  ## remove what the set-up made here; the kept engine stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
