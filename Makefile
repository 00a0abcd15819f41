# genfed: `make demo` and `make test` need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help demo demo-oneshot demo-tables test fuzz check audit format bench chaos clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.installed  ## install and run GeFL and its baselines on real digits (minutes)
	$(BIN)/genfed run configs/demo.toml --fresh

demo-oneshot: $(VENV)/.installed-foundation  ## install with diffusers and run FedLMG and FGL on digits in four styles (minutes)
	$(BIN)/genfed run configs/oneshot-demo.toml --fresh

demo-tables: $(VENV)/.installed-tables  ## install with pandas and pyarrow, and make synthetic rows of three hospitals (a minute)
	$(BIN)/python -m benchmarks.demo_tables

test: $(VENV)/.installed-dev  ## install with every extra and run all tests
	$(BIN)/python -m pytest $(TESTS)

fuzz: $(VENV)/.installed-dev  ## feed many wrong records, messages and configs to what reads them (TESTS="-k bytes": some)
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile fuzz --timeout 7200 $(TESTS)

check: $(VENV)/.installed-dev  ## format, lint, types, import floors, insecure patterns
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive genfed .ci

audit: $(VENV)/.installed-dev  ## look the installed packages up in an index of known vulnerabilities
	$(BIN)/python .ci/audit.py

format: $(VENV)/.installed-dev  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## the benchmarks; results go to benchmarks/results/
	$(BIN)/python -m benchmarks

chaos: $(VENV)/.installed-dev  ## kill runs of every method at 100 random system calls, and compare what they end with; needs strace (KILLS=, SEED=)
	nice $(BIN)/python -m tests.chaos --kills $(or $(KILLS),100) --seed $(or $(SEED),0)

clean:  ## delete the environment (runs stay)
	rm -rf $(VENV)

$(VENV)/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "genfed: no $(PYTHON) found; install Python 3.11 or later, or name one: make PYTHON=/path/to/python3"; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "genfed: $$("$(PYTHON)" --version) is too old; 3.11 or later is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "genfed: $(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "installing genfed into $(VENV): some minutes, mostly for PyTorch"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	@touch $@

$(VENV)/.installed-foundation: $(VENV)/bin/python pyproject.toml
	@echo "installing genfed with diffusers into $(VENV): some minutes, mostly for PyTorch"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[foundation]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-tables: $(VENV)/bin/python pyproject.toml
	@echo "installing genfed with pandas and pyarrow into $(VENV): some minutes, mostly for PyTorch"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[tables]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	@echo "installing genfed with every extra into $(VENV): some minutes, mostly for PyTorch"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-foundation $(VENV)/.installed-tables
