# What a stranger needs: demo, test, crash, lint, bench, fuzz. CI calls the same.

CARGO ?= cargo
VENV := target/venv
# Clients that the tests drive; a change here installs them anew.
CLIENTS := openai==3.52.0 duckdb==1.5.6 schemathesis==4.32.5 \
  fastapi==0.165.0 httpx==0.28.1 uvicorn==0.54.0 pytest==9.2.0 mypy==2.4.1 hatchling==1.33.0
CLIENTS_STAMP := $(VENV)/.$(subst $(eval ) ,-,$(CLIENTS))
# Our own, which is installed anew whenever a file of it changes, comes or goes.
PACKAGE := clients/python
PACKAGE_STAMP := $(VENV)/.tollgate-client
PACKAGE_FILES := $(PACKAGE)/pyproject.toml $(PACKAGE)/README.md \
  $(shell find $(PACKAGE)/src -name __pycache__ -prune -o -print)

.PHONY: demo dist test crash lint bench fuzz soak packages disks clients

demo:
	@echo "Building tollgate to try it. The first time takes some minutes, about four on two cores."
	$(CARGO) run --profile try --bin tollgate -- demo $(DEMO_ARGS)

# What is installed: the fast program without its symbols, and beside it what debuggers and backtraces need.
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release/tollgate
DIST := $(TARGET)/dist
dist:
	$(CARGO) build --release --bin tollgate
	mkdir -p $(DIST)
	objcopy --only-keep-debug --compress-debug-sections=zlib $(RELEASE) $(DIST)/tollgate.debug
	objcopy --strip-all --add-gnu-debuglink=$(DIST)/tollgate.debug $(RELEASE) $(DIST)/tollgate
	ls -l $(DIST)

# One binary of integration tests; those that drive clients need Python with them. The benchmarks are only
# built, by `make lint`.
test: packages disks clients
	TOLLGATE_TEST_PYTHON=$(abspath $(VENV))/bin/python $(CARGO) test --lib --test it
	$(CARGO) test --doc
	$(MAKE) crash

# The gateway is killed again and again, and its books are checked: see tests/crash/main.rs. CYCLES=10000 for a long run,
# ONLY=power for one kind, SEED=… to see a failure again. The power cuts need a disk of their own; without one they fail.
crash: disks
	TOLLGATE_CRASH_CYCLES=$(CYCLES) TOLLGATE_CRASH_ONLY=$(ONLY) TOLLGATE_CRASH_SEED=$(SEED) TOLLGATE_CRASH_BACKENDS=$(BACKENDS) \
	  $(CARGO) test --features failpoints --test crash

# Says all at once what is missing, where it cannot install it.
packages:
	./tests/install-packages.sh python3=python3 venv=python3-venv nginx=nginx-light curl=curl

# For the power cuts and the full disk of the crash tests.
disks:
	./tests/prepare-disks.sh

clients: $(CLIENTS_STAMP) $(PACKAGE_STAMP)

$(CLIENTS_STAMP): | packages
	./tests/install-clients.sh $(VENV) $(CLIENTS)
	touch $@

$(PACKAGE_STAMP): $(CLIENTS_STAMP) $(PACKAGE_FILES)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall ./$(PACKAGE)
	touch $@

# cargo-deny is built without optimisation: it runs for a second, and is built for minutes.
lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features failpoints -- -D warnings
	@command -v cargo-deny >/dev/null || CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install cargo-deny --locked --debug
	./.ci/deny

bench:
	$(CARGO) bench --bench gateway -- $(BENCH_ARGS)
	$(CARGO) bench --bench micro

# Bounded: property tests with many more cases than `make test` runs, and 10⁸ operations on the ledger.
fuzz:
	PROPTEST_CASES=20000 $(CARGO) test --release --lib -- --quiet
	TOLLGATE_LEDGER_OPS=$(or $(LEDGER_OPS),100000000) $(CARGO) test --release --lib ledger_run -- --nocapture

# Thirty minutes of mixed load with clients that leave: see tests/it/soak.rs.
soak:
	TOLLGATE_SOAK_SECONDS=$(or $(SECONDS),1800) $(CARGO) test --release --test it soak -- --nocapture
