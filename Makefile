# Each target sets up what it needs: on a fresh machine start with any of them.
#
#   make setup                 .venv with mUFS in it, and the system packages that are lacking
#   make demo [IMAGE=FILE]     two hosts on this machine read an image that is sent once
#   make test [TESTS=NAME]     the tests, or those of one module, class or method; JOBS=N at a time
#   make test-fast             those that need no processes, mounts or namespaces
#   make lint                  ruff, its formatter as a check, and mypy
#   make format                ruff's formatter, on all files
#   make docs                  the documentation as a site, in build/docs, with the API reference
#   make news                  what NEWS.md would say of the fragments in newsfragments/
#   make test-pythons          lint and test-fast with other Pythons, those of PYTHONS that are there
#   make coverage [TESTS=NAME] the tests, and which lines and branches of mUFS they reach
#   make fuzz [MINUTES=10]     any bytes to each parser and protocol, so long; TARGET=NAME for one,
#                              REPEAT=FILE for an input that was found
#   make soak [MINUTES=60] [SEED=N]  hosts read while faults come by chance; as root
#   make bench [BENCH=OPTIONS] mUFS beside its peers, as far as these are installed: bench/README.md
#   make bench-peers           install them
#   make experiment            the paper's experiment with virtual machines: docs/experiments.md;
#                              EXPERIMENT='--scale paper' for those of its size
#   make experiment-replay     the same with recorded boots
#   make dist                  wheel and source distribution, in dist/
#   make deb                   a package for this release of Debian, in dist/
#   make clean                 remove all that the others made

PYTHON = python3
PYTHONS = python3.11 python3.12 python3.13 python3.14
IMAGE =
TESTS = mufs
JOBS = $(shell nproc)
SEED =
BENCH =
EXPERIMENT =
MINUTES =
TARGET =
REPEAT =

VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed

# All test packages and modules but mufs.test.system.
FAST_TESTS = $(subst /,.,$(basename $(filter-out mufs/test/system, \
    $(patsubst %/__init__.py,%,$(wildcard mufs/test/*/__init__.py)) $(wildcard mufs/test/test_*.py))))

.PHONY: setup system demo test test-fast lint format docs news test-pythons coverage fuzz soak bench bench-peers \
    experiment experiment-replay dist deb clean

setup: $(INSTALLED)

# editable_mode=compat: twistd does not find the plugins of an editable install without it.
$(INSTALLED): setup.cfg pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or \
	    sys.exit("mUFS needs Python 3.11 or later; $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]' --config-settings editable_mode=compat
	@touch $@

system:
	@.ci/system-packages $(PYTHON)

demo: setup
	@$(BIN)/python -m mufs.demo $(if $(IMAGE),'$(IMAGE)')

test: setup
	$(BIN)/trial -j$(JOBS) $(TESTS)

test-fast: setup
	$(BIN)/trial -j$(JOBS) $(FAST_TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .

docs: .venv/documenting
	$(BIN)/sphinx-build --builder html --fail-on-warning --keep-going --quiet docs build/docs
	$(BIN)/pydoctor

.venv/documenting: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[docs]' --config-settings editable_mode=compat
	@touch $@

news: setup
	$(BIN)/towncrier build --draft --version unreleased

# Each has an environment of its own. The Python that .venv has is left out.
test-pythons:
	@version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	main=$$($(PYTHON) -c "$$version"); \
	for python in $(PYTHONS); do \
	    other=$$($$python -c "$$version" 2>/dev/null) || \
	        { echo "$$python is not there: not tested"; continue; }; \
	    [ "$$other" = "$$main" ] || \
	        $(MAKE) --no-print-directory PYTHON=$$python VENV=.venv-$$other lint test-fast || exit; \
	done

# Processes that tests start count, too, unless they are killed.
coverage: setup
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m twisted.trial -j$(JOBS) $(TESTS); status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

fuzz: .venv/fuzzing
	$(BIN)/python -m mufs.test.fuzz $(if $(REPEAT),--repeat '$(REPEAT)',--minutes $(or $(MINUTES),10) $(TARGET))

.venv/fuzzing: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[fuzz]' --config-settings editable_mode=compat
	@touch $@

soak: setup
	@$(BIN)/python -m mufs.test.soak --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

bench: .venv/drawing
	$(BIN)/python bench/run.py $(BENCH)

.venv/drawing: $(INSTALLED)
	$(BIN)/pip install --quiet --editable '.[bench]' --config-settings editable_mode=compat
	@touch $@

experiment: .venv/drawing
	@bench/install-peers experiment
	@$(BIN)/python bench/experiment/run.py --mode live $(EXPERIMENT)

experiment-replay: .venv/drawing
	@$(BIN)/python bench/experiment/run.py --mode replay $(EXPERIMENT)

bench-peers:
	@bench/install-peers

# The wheel is made from the source distribution. What builds it is installed already.
dist: setup
	rm -f dist/mufs-*
	$(BIN)/python -m build --no-isolation .

deb: dist
	packaging/deb dist/mufs-*.whl dist

clean:
	rm -rf .venv .venv-* build dist mufs.egg-info bench/results .fuzz
	rm -rf _trial_temp* .hypothesis .mypy_cache .ruff_cache .coverage .coverage.*
	rm -f twisted/plugins/dropin.cache
	find mufs twisted bench -name __pycache__ -prune -exec rm -rf {} +
