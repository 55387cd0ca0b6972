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

.PHONY: demo test crash lint bench fuzz soak clients

demo:
	$(CARGO) build --release --quiet
	./target/release/tollgate demo $(DEMO_ARGS)

# One binary of integration tests; those that drive clients need Python with them. The benchmarks are only
# built, by `make lint`.
test: clients
	./tests/install-packages.sh nginx=nginx-light curl=curl
	TOLLGATE_TEST_PYTHON=$(abspath $(VENV))/bin/python $(CARGO) test --lib --bins --test it
	$(CARGO) test --doc
	$(MAKE) crash

# The gateway is killed again and again, and its books are checked: see tests/crash/main.rs. CYCLES=10000 for a long run,
# ONLY=power for one kind, SEED=… to see a failure again.
crash:
	TOLLGATE_CRASH_CYCLES=$(CYCLES) TOLLGATE_CRASH_ONLY=$(ONLY) TOLLGATE_CRASH_SEED=$(SEED) TOLLGATE_CRASH_BACKENDS=$(BACKENDS) \
	  $(CARGO) test --features failpoints --test crash

clients: $(CLIENTS_STAMP) $(PACKAGE_STAMP)

$(CLIENTS_STAMP):
	./tests/install-clients.sh $(VENV) $(CLIENTS)
	touch $@

$(PACKAGE_STAMP): $(CLIENTS_STAMP) $(PACKAGE_FILES)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall ./$(PACKAGE)
	touch $@

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --quiet -- -D warnings
	$(CARGO) clippy --features failpoints --test crash --quiet -- -D warnings
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked --quiet
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
