# What a stranger needs: demo, test, crash, lint, bench, fuzz. CI calls the same.

CARGO ?= cargo
VENV := target/venv
# Clients that the tests drive; a change here installs them anew.
CLIENTS := openai==3.52.0 duckdb==1.5.6 schemathesis==4.32.5
CLIENTS_STAMP := $(VENV)/.$(subst $(eval ) ,-,$(CLIENTS))

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

clients: $(CLIENTS_STAMP)

$(CLIENTS_STAMP):
	./tests/install-clients.sh $(VENV) $(CLIENTS)
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
