# What this project can do, by name; `make` alone lists it. PYTHON=python3.X chooses the main interpreter (python3).
#
# Where things go: the release wheels in target/wheels, what the tests install in target/test-wheels/VERSION; .venv is the
# demo's, .venvs/VERSION the tests'. Each interpreter has target directories of its own, so that none undoes another's work.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
PYTEST_ARGS ?= -n auto
BENCH_ARGS ?=
FUZZ_SECONDS ?= 60
export PYTHON

# The interpreter itself, not a wrapper that looks one up, and its version. Both are empty when it cannot be used.
INTERPRETER := $(shell $(PYTHON) -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
TEST_VENV := .venvs/$(VERSION)
EXAMPLE := examples/django/requirements.txt

SOURCES := $(shell find src python build.rs Cargo.toml Cargo.lock pyproject.toml README.md LICENSE -type f ! -name '*.pyc')
SHIM := $(shell find shim -type f ! -name '*.pyc')
LOCKED := $(if $(filter true,$(CI)),--locked)
CARGO := CARGO_TARGET_DIR=target/$(VERSION) PYO3_PYTHON=$(INTERPRETER) cargo
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test check fmt clippy dependencies cargo-test embed pytest smoke smoke-embed wheel docs unsafe packages audit memcheck asan leaks bench fuzz site rustdoc system clean

help:
	@echo 'make demo    serve the example Django project on 127.0.0.1:8000, behind Nginx on 127.0.0.1:8080 where it is installed'
	@echo 'make test    check and test everything, with every Python found; installs what that needs'
	@echo 'make check   rustfmt, clippy and what the crates are only'
	@echo 'make wheel   build the release wheels into target/wheels, one for every Python found; one more is the shim'
	@echo 'make docs    write the list of settings in docs/settings.md'
	@echo 'make site    build the documentation site into target/site; fails for a link that leads nowhere'
	@echo 'make unsafe  write docs/unsafe.md, the list of unsafe code'
	@echo 'make packages  choose the newest Python packages to build and test with, and write down their checksums; needs the network'
	@echo 'make audit   look for known vulnerabilities of the crates; needs the network and cargo-deny or cargo-audit'
	@echo 'make memcheck  test everything with AddressSanitizer, and with the debug allocator of CPython; a little under valgrind'
	@echo 'make leaks   a million requests of all kinds, then look for what is left of them'
	@echo 'make bench   compare with other servers; see benches/README.md'
	@echo 'make fuzz    look for bytes that break a rule, FUZZ_SECONDS=60 for each of the targets in fuzz/; needs a C++ compiler'
	@echo 'make clean   remove all that was made'

# --- demo ---------------------------------------------------------------------------------------------------------------

demo: .venv/.wheel .venv/.example
	@PATH="$(CURDIR)/.venv/bin:$$PATH" exec examples/django/demo.sh

.venv/.wheel: target/wheels/.$(VERSION)
	.venv/bin/python $(PIP_INSTALL) --force-reinstall --no-deps target/wheels/rgunicorn-*-cp$(subst .,,$(VERSION))-*.whl
	@touch $@

.venv/.example: $(EXAMPLE) .venv/.build
	.venv/bin/python $(PIP_INSTALL) -r $(EXAMPLE)
	@touch $@

.venv/.build: .ci/packages/build.txt
	@.ci/system build $(PYTHON)
	[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

# --- wheel --------------------------------------------------------------------------------------------------------------

# `--compatibility pypi` refuses what could not be published: a wheel tagged for this machine only.
MATURIN_BUILD = build --quiet $(LOCKED) --compatibility pypi --target-dir target/wheel-$*

wheel:
	@.ci/pythons | sed 's/ .*//' | while read -r version; do $(MAKE) target/wheels/.$$version </dev/null; done
	@$(MAKE) target/wheels/.shim
	@ls target/wheels/*.whl

# For every Python: a command and a module by the name gunicorn.
target/wheels/.shim: $(SHIM) .venv/.build
	rm -f target/wheels/rgunicorn_gunicorn-*.whl
	.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation \
	    --wheel-dir target/wheels ./shim
	@touch $@

target/wheels/.%: $(SOURCES) .venv/.build
	rm -f target/wheels/rgunicorn-*-cp$(subst .,,$*)-*.whl
	.venv/bin/maturin $(MATURIN_BUILD) --release --out target/wheels \
	    --interpreter "$$(.ci/pythons | sed -n 's/^$* //p')"
	.ci/released target/wheels/rgunicorn-*-cp$(subst .,,$*)-*.whl
	@touch $@

# --- test ---------------------------------------------------------------------------------------------------------------

test: system fmt clippy cargo-test site rustdoc pytest smoke smoke-embed

system:
	@.ci/system test $(PYTHON)

check: fmt clippy dependencies

# Sources, checksums and licences of the crates.
dependencies:
	.ci/dependencies

fmt:
	cargo fmt --check

clippy:
	$(CARGO) clippy $(LOCKED) --quiet --all-targets -- -D warnings
	$(CARGO) clippy $(LOCKED) --quiet --all-targets --features embed -- -D warnings

cargo-test:
	$(CARGO) test $(LOCKED) --quiet --features embed

pytest: $(TEST_VENV)/.wheel $(TEST_VENV)/.peers
	RGUNICORN_WHEEL="$$(echo target/test-wheels/$(VERSION)/*.whl)" $(TEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)

# The installed wheel of every other Python found.
smoke:
	@.ci/pythons | sed -n '/^$(VERSION) /!s/ .*//p' | while read -r version; do $(MAKE) smoke-$$version </dev/null; done

smoke-%: .venvs/%/.wheel
	.venvs/$*/bin/python -m pytest tests/test_smoke.py

# The stand-alone binary, which finds its packages in the virtual environment that is active.
smoke-embed: embed $(TEST_VENV)/.wheel
	RGUNICORN=$(CURDIR)/target/$(VERSION)/debug/rgunicorn VIRTUAL_ENV=$(CURDIR)/$(TEST_VENV) \
	    $(TEST_VENV)/bin/python -m pytest tests/test_smoke.py

embed:
	$(CARGO) build $(LOCKED) --quiet --features embed

.venvs/%/.wheel: target/test-wheels/%/.built
	.venvs/$*/bin/python $(PIP_INSTALL) --force-reinstall --no-deps target/test-wheels/$*/*.whl
	@touch $@

target/test-wheels/%/.built: $(SOURCES) .venvs/%/.packages $(TEST_VENV)/.packages
	rm -rf target/test-wheels/$*
	$(TEST_VENV)/bin/maturin $(MATURIN_BUILD) --profile dev --strip false --out target/test-wheels/$* \
	    --interpreter .venvs/$*/bin/python
	@touch $@

.venvs/%/.packages: .ci/packages/test.txt
	[ -x .venvs/$*/bin/python ] || "$$(.ci/pythons | sed -n 's/^$* //p')" -m venv .venvs/$*
	.venvs/$*/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

# What the tests start to compare with it; where it is not to be imported.
.venvs/%/.peers: .ci/packages/peers.txt .venvs/%/.packages
	rm -rf .venvs/$*/peers
	.venvs/$*/bin/python $(PIP_INSTALL) --require-hashes --target .venvs/$*/peers -r $<
	@touch $@

.PRECIOUS: target/wheels/.% .venvs/%/.peers .venvs/%/.wheel .venvs/%/.packages target/test-wheels/%/.built \
    .venvs/asan-%/.packages target/test-wheels/asan-%/.built

# --- memory and supply ---------------------------------------------------------------------------------------------------

unsafe:
	.ci/unsafe > docs/unsafe.md

# What is installed to build and to test, for every Python: by version and checksum.
LOCK = target/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.9 --generate-hashes --no-annotate \
    --custom-compile-command 'make packages'
packages:
	[ -x target/uv/bin/uv ] || { $(PYTHON) -m venv target/uv && target/uv/bin/python $(PIP_INSTALL) uv; }
	$(LOCK) --group build -o .ci/packages/build.txt
	$(LOCK) --group site -o .ci/packages/site.txt
	$(LOCK) --group build --group test $(EXAMPLE) -o .ci/packages/test.txt
	$(LOCK) --group peers -o .ci/packages/peers.txt

# The RustSec database is fetched from GitHub.
audit:
	@if command -v cargo-deny >/dev/null; then cargo deny check; \
	elif command -v cargo-audit >/dev/null; then cargo audit; \
	else echo 'make: cargo install --locked cargo-deny first' >&2; exit 1; fi

# Not ours: files that the tests' applications leave open, and what other packages use that is going away.
WARNINGS := ignore::ResourceWarning,ignore:'cgi' is deprecated:DeprecationWarning,ignore:ssl.OP_NO_:DeprecationWarning,ignore:Deprecated call to:DeprecationWarning

# All tests with AddressSanitizer, then with CPython's debug allocator alone, then every access of a few requests by valgrind.
memcheck: asan $(TEST_VENV)/.wheel
	RGUNICORN_ENV="PYTHONMALLOC=debug PYTHONDEVMODE=1 \"PYTHONWARNINGS=$(WARNINGS)\"" $(TEST_VENV)/bin/python -m pytest $(PYTEST_ARGS)
	RGUNICORN_VALGRIND=1 $(TEST_VENV)/bin/python -m pytest -n 2 tests/test_valgrind.py

asan: .venvs/asan-$(VERSION)/.wheel
	PYTHONWARNINGS="$(WARNINGS)" .ci/asan .venvs/asan-$(VERSION) $(PYTEST_ARGS)

# RUSTC_BOOTSTRAP lets the stable compiler take the flag, which with --target is not for what runs while it compiles.
target/test-wheels/asan-%/.built: $(SOURCES) .venvs/asan-%/.packages $(TEST_VENV)/.packages
	rm -rf target/test-wheels/asan-$*
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address $(TEST_VENV)/bin/maturin $(subst wheel-,wheel-asan-,$(MATURIN_BUILD)) \
	    --target "$$(rustc -vV | sed -n 's/^host: //p')" --profile dev --strip false --out target/test-wheels/asan-$* \
	    --interpreter .venvs/asan-$*/bin/python
	@touch $@

# The debug build of CPython, where there is one, has assertions about references and objects.
.venvs/asan-%/.packages: .ci/packages/test.txt
	@.ci/system memcheck $(PYTHON)
	[ -x .venvs/asan-$*/bin/python ] || "$$(command -v python$*-dbg || .ci/pythons | sed -n 's/^$* //p')" -m venv .venvs/asan-$*
	.venvs/asan-$*/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

leaks: $(TEST_VENV)/.wheel
	RGUNICORN_BIG=1 $(TEST_VENV)/bin/python -m pytest -s tests/test_leaks.py

# --- the rest -----------------------------------------------------------------------------------------------------------

# Every page and link of the documentation.
site: .venvs/site/.packages
	NO_MKDOCS_2_WARNING=1 .venvs/site/bin/mkdocs build --quiet --strict

.venvs/site/.packages: .ci/packages/site.txt
	[ -x .venvs/site/bin/python ] || $(PYTHON) -m venv .venvs/site
	.venvs/site/bin/python $(PIP_INSTALL) --require-hashes -r $<
	@touch $@

# Every link in the comments of the code.
rustdoc:
	RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links" $(CARGO) doc $(LOCKED) --quiet --no-deps --document-private-items

docs: $(TEST_VENV)/.wheel
	$(TEST_VENV)/bin/python docs/generate.py

bench: target/wheels/.$(VERSION)
	$(PYTHON) benches/run.py --wheel target/wheels/rgunicorn-*-cp$(subst .,,$(VERSION))-*.whl $(BENCH_ARGS)

# cargo-fuzz is installed where it is missing.
fuzz:
	fuzz/run $(FUZZ_SECONDS)

clean:
	rm -rf target .venv .venvs .bench .pytest_cache fuzz/artifacts fuzz/corpus
	rm -rf examples/django/db.sqlite3* examples/django/media examples/django/staticfiles
	find python tests examples benches -name __pycache__ -type d -prune -exec rm -rf {} +
