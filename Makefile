# Run it from a bare clone: each target first sets up what it needs, and a second run is quick.

.DEFAULT_GOAL := help
.PHONY: help demo test bench soak endpoints constraints lint \
	python-packages stack-packages all-packages bench-packages
# Set-up steps would get in each other's way.
.NOTPARALLEL:
.DELETE_ON_ERROR:

PYTHON_PACKAGES := python3 python3-venv
# gcc and the headers: PostgreSQL's client for Python is built from source.
STACK_PACKAGES := $(PYTHON_PACKAGES) gcc libc6-dev libpq-dev python3-dev nginx postgresql redis-server \
	openssl util-linux
ALL_PACKAGES := $(STACK_PACKAGES) docker-compose libfaketime wrk systemd libnginx-mod-http-js prometheus \
	mtail chromium chromium-driver curl patch iproute2 git

# SYNAPSE_PYTHON=/path/to/python: a Python that has Synapse already.
ifndef SYNAPSE_PYTHON
SYNAPSE := .venv-synapse/.stamp
endif

help:
	@echo "make demo             a real Synapse with four workers: see where each user's syncs go"
	@echo "make demo ARGS=--once the same, without staying up afterwards"
	@echo "make test             all checks and tests, as .ci/run does"
	@echo "make bench            what it costs, beside other ways to do it (RUNS=3; NGINX=/another/nginx)"
	@echo "make soak             the faults, floods and fuzz again, ten times as long (SOAK=10)"
	@echo "make endpoints        how the endpoints of the installed Synapse differ from those we route"
	@echo "make constraints      the newest versions of what is installed into the image (constraints.txt)"
	@echo "make lint             ruff and mypy only"
	@echo
	@echo "Needs Debian 12 or later (or a relative) and root or sudo for the packages it lacks."

demo: stack-packages .venv/.stamp $(SYNAPSE)
	@.venv/bin/python -m tests.demo $(ARGS)

test: all-packages lint $(SYNAPSE)
	.venv/bin/pytest

RUNS := 3
bench: bench-packages .venv/.stamp $(SYNAPSE)
	.venv/bin/python -m bench --runs $(RUNS)

SOAK := 10
soak: all-packages .venv/.stamp $(SYNAPSE)
	WHOAMI_ROUTER_SOAK=$(SOAK) .venv/bin/pytest tests/deployment/faults tests/fuzz tests/resolver/test_memory.py

endpoints: stack-packages .venv/.stamp $(SYNAPSE)
	@.venv/bin/python -m tests.endpoints

constraints: python-packages
	@python3 -m venv --clear build/constraints
	@build/constraints/bin/pip install -qq --disable-pip-version-check . hatchling
	@{ sed '/^#/!d' constraints.txt; build/constraints/bin/pip freeze --exclude whoami-router; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt

lint: .venv/.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

python-packages:
	@sh tests/stack/debian-packages.sh $(PYTHON_PACKAGES)

# Lua is compared with where it can be installed: beside another nginx than Debian's it cannot.
bench-packages: all-packages
	-@sh tests/stack/debian-packages.sh libnginx-mod-http-lua

stack-packages:
	@sh tests/stack/debian-packages.sh $(STACK_PACKAGES)

all-packages:
	@sh tests/stack/debian-packages.sh $(ALL_PACKAGES)

# An environment that is broken (its Python is gone, its making was interrupted) is made anew.
# pip before 25.1 knows no dependency groups.
define make-environment
@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "python3 is $$(python3 --version 2>&1); Python 3.11 or later is needed." >&2; exit 1; }
@echo "Setting up $(@D) (takes a while, once)"
@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear $(@D)
@$(pip-install) 'pip>=25.1'
endef
# -qq: errors, but no warnings.
pip-install = $(@D)/bin/python -m pip install -qq --disable-pip-version-check

.venv/.stamp: pyproject.toml | python-packages
	$(make-environment)
	@$(pip-install) --editable . --group test --group bench
	@touch $@

.venv-synapse/.stamp: tests/stack/synapse-requirements.txt | stack-packages
	$(make-environment)
	@$(pip-install) --requirement $<
	@touch $@
