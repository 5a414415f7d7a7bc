# `make` alone lists the targets. ARGS is handed on: make serve ARGS="--port 9000".
# PYTHON picks the interpreter (3.11 or newer). pip's and npm's own settings
# (index or registry, mirrors, certificates) hold as they are.

VENV := .venv
DEV := .venv-dev
OLDEST := .venv-oldest
NODE := tests/node/node_modules

# The oldest transformers that pyproject.toml admits, and the tests that run on it too (unless ARGS chooses tests).
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
OLDEST_TESTS := $(if $(ARGS),,$(wildcard tests/engines/test_transformers*.py tests/streamers tests/test_streamers*.py))

# System packages that the tests need, by scripts/system_deps' names.
TEST_SYSTEM_DEPS := venv curl redis
NODE_SYSTEM_DEPS := node npm

export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some machines install for the user by default, which pip refuses inside a virtual environment.
export PIP_USER := 0

.DEFAULT_GOAL := help
.PHONY: help serve demo test check bench cuts docs constraints clean FORCE

help:  ## list these targets
	@echo 'causerie: talk to a chat model, token by token'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo
	@echo 'First time here? make serve, then in a second terminal:'
	@echo "  curl -N -d 'Why is the sky blue?' http://localhost:8000/"

serve: $(VENV)/installed  ## install what serving needs (once) and start the server; ARGS="--port 9000"
	@exec $(VENV)/bin/causerie serve $(ARGS)

demo: $(VENV)/installed  ## see it read while you type, be interrupted, and survive kill -9; under two minutes
	$(VENV)/bin/python scripts/demo.py

test: $(DEV)/installed $(OLDEST)/installed $(NODE)/installed  ## install everything (once) and run every test; ARGS="-k cancel"
	$(DEV)/bin/python -m pytest $(ARGS)
ifneq ($(OLDEST_TESTS),)
	$(OLDEST)/bin/python -m pytest $(OLDEST_TESTS) $(ARGS)
endif

check: $(DEV)/installed $(NODE)/installed  ## format, lint, types and the quick tests
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/python -m pytest -q -m "not slow and not model" $(ARGS)

bench: $(DEV)/installed  ## measure speed and faithfulness on this machine; ARGS chooses what
	$(DEV)/bin/python -m benchmarks $(ARGS)

cuts: $(DEV)/installed  ## cut streams 1,000 times on each of two engines, and see that they come whole
	$(DEV)/bin/python -m benchmarks cuts

docs: $(DEV)/installed  ## rewrite the pages that are made from the code
	$(DEV)/bin/python scripts/settings_page.py > docs/settings.md

constraints: $(DEV)/installed  ## write the development environment's versions to constraints.txt
	scripts/freeze $(DEV)/bin/python > constraints.new && mv constraints.new constraints.txt

clean:  ## remove the virtual environments and caches (not the models)
	rm -rf $(VENV) $(DEV) $(OLDEST) $(NODE) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made again when what it holds has changed, or when the checkout has moved.
define moved
ifneq ($$(shell cat $(1)/installed 2>/dev/null),$$(CURDIR))
$(1)/installed: FORCE
endif
endef
$(foreach venv,$(VENV) $(DEV) $(OLDEST),$(eval $(call moved,$(venv))))
FORCE:

$(VENV)/installed: pyproject.toml constraints.txt
	@echo 'Installing causerie into $(VENV), once; about 400 MB.' >&2
	scripts/make_venv $(VENV)
	$(VENV)/bin/python -m pip install -c constraints.txt -e .
	@pwd > $@

# pip 25.1 is the first that knows dependency groups.
$(DEV)/installed: pyproject.toml constraints.txt
	scripts/system_deps $(TEST_SYSTEM_DEPS)
	scripts/make_venv $(DEV)
	$(DEV)/bin/python -m pip install --upgrade 'pip>=25.1'
	$(DEV)/bin/python -m pip install -c constraints.txt -e '.[transformers,ray,redis]' --group dev
	@pwd > $@

# Sees everything in the development environment except transformers and what that asks for in an older version.
$(OLDEST)/installed: $(DEV)/installed
	scripts/make_venv $(OLDEST)
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	    echo "import site; site.addsitedir('$$($(DEV)/bin/python -c "$$site")')" \
	    > "$$($(OLDEST)/bin/python -c "$$site")/development.pth"
	$(OLDEST)/bin/python -m pip install 'transformers==$(OLDEST_TRANSFORMERS)'
	@pwd > $@

# `npm ci` takes exactly what the lock file says, and empties the folder first, stamp and all.
$(NODE)/installed: tests/node/package.json tests/node/package-lock.json
	scripts/system_deps $(NODE_SYSTEM_DEPS)
	npm ci --prefix tests/node --ignore-scripts --no-audit --no-fund
	@touch $@
