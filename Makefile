# The targets for building, testing and running. Continuous integration runs only `make test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: all run test lint header abi man install uninstall bench bench-client compare profile redis-clients sim sim-mutations sim-exhaustive chaos setup clean help

# Cargo.lock pins the tested versions, so no command here may change it.
CARGO := cargo
LOCKED := --locked
# Builds with mutations (deliberate omissions of rules): only of the simulator and of the crates that it runs.
MUTATIONS := $(LOCKED) -p kv-sim --features mutations
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/lib/*.sh)

all: ## build the executables and the C library (release), in bin/
	@scripts/setup.sh build
	@scripts/build.sh

run: all ## start three servers on this machine and open the client; Ctrl+D ends the client and the cluster
	@scripts/run.sh

test: lint ## run everything that continuous integration runs
	$(CARGO) test --workspace $(LOCKED) --no-fail-fast
# The tests that depend on the network engine, once more with epoll and with all io_uring calls denied. In the first run
# the servers chose the engine.
	KV_TEST_NET=epoll $(CARGO) test $(LOCKED) --no-fail-fast --test both_engines
	$(CARGO) test $(MUTATIONS) --test exhaustive
# About two minutes of the simulator, with fixed seeds and all assertions enabled.
	$(CARGO) run --profile sim $(LOCKED) -p kv-sim --bin sim -- --seeds 100
# Two minutes of faults, and a few ordinary days, on real processes. `chaos` uses the executables in its own directory,
# so these are built from the current source first.
	$(CARGO) build --workspace $(LOCKED) --bins
	target/debug/chaos --slice
# Floods of requests: no view may change.
	target/debug/chaos measure floods --quick --seconds 2
	target/debug/chaos measure floods --quick --seconds 2 --net epoll --only "open loop"
# Every benchmark and the comparison, once and without measuring, to test that they work. The profile is the one that is
# already built. Without --bench, cargo would also repeat every unit test.
	$(CARGO) bench --profile dev --workspace $(LOCKED) --bench '*' -- --test
	target/debug/kv-compare --quick

lint: setup ## check formatting, clippy, documentation, licences, scripts, the C header and ABI
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/redis/rust/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets $(LOCKED) -- -D warnings
	$(CARGO) clippy $(MUTATIONS) -p kv-core -p kv-shard --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps $(LOCKED)
	$(CARGO) deny --workspace $(LOCKED) check --hide-inclusion-graph licenses bans sources
	shellcheck --external-sources $(SCRIPTS)
	scripts/header.sh --check
	scripts/abi.sh --check

header: ## regenerate include/kvclient.h from ffi/
	scripts/header.sh

abi: ## regenerate ffi/abi/, the record of the C ABI, from include/kvclient.h
	scripts/abi.sh

man: ## regenerate docs/man/*.1 from the output of --help, and the table in docs/redis.md
	RENEW_MANUAL=1 $(CARGO) test $(LOCKED) --test commands manual::
	RENEW_MANUAL=1 $(CARGO) test $(LOCKED) -p kv-redis --test documentation

install: ## install executables, C library and manual in PREFIX (default: /usr/local), below DESTDIR
	@scripts/install.sh install

uninstall: ## remove the installed files; takes the same PREFIX and DESTDIR as install
	@scripts/install.sh uninstall

bench: ## run all benchmarks (takes minutes; criterion's results: target/criterion/)
	$(CARGO) bench --workspace $(LOCKED) --bench '*'

bench-client: ## compare the cost of operations in C with a bare socket loop and hiredis (report: benches/results/)
	@scripts/setup.sh bench
	$(CARGO) bench $(LOCKED) --bench client -- --report

compare: ## compare this store with Redis, Valkey, memcached and kv-echo (takes minutes; report: benches/results/)
	@scripts/setup.sh build
	@scripts/setup.sh compare
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-bench --bins
	PATH=$$PWD/target/peers:$$PATH target/release/kv-compare $(COMPARE)

profile: ## profile a server with GET and PUT, and count instructions per operation (results: target/profile/)
	@scripts/setup.sh build
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-bench --bins
	@scripts/profile.sh

redis-clients: ## run clients and frameworks of Redis in Python, JavaScript and Rust against real clusters
	scripts/setup.sh clients
	$(CARGO) test $(LOCKED) --test redis clients -- --ignored --nocapture

sim: ## compare number texts, evictions and commands with Redis, updates with a model, and the parser of Redis commands with another one, then simulate fixed seeds, and new ones for 10 minutes
	@scripts/setup.sh sim
# 100,000 additions of random texts. Without --nocapture, cargo would hide the seed and the counts.
	$(CARGO) test $(LOCKED) -p kv-core --test number_differential -- --ignored --nocapture
# Two million accesses of a cache, for the hit ratio of evictions.
	$(CARGO) test $(LOCKED) -p kv-core --test eviction_hit_ratio -- --ignored --nocapture
# 300,000 commands of Redis clients.
	$(CARGO) test $(LOCKED) -p kv-redis --lib differential -- --ignored --nocapture
# 100,000 commands of Redis clients, to a real cluster.
	$(CARGO) test $(LOCKED) --test redis differential -- --ignored --nocapture
# A million sequences of random updates.
	$(CARGO) test $(LOCKED) -p kv-core --lib update::tests -- --ignored --nocapture
# Ten million inputs of the parser of Redis commands.
	$(CARGO) test $(LOCKED) -p kv-redis --test parser_oracle -- --ignored --nocapture
	$(CARGO) run --profile sim $(LOCKED) -p kv-sim --bin sim -- --seeds 64 --minutes 10 --enough

sim-mutations: ## list the rules whose omission the simulator does not detect (takes long)
	$(CARGO) run --profile sim $(MUTATIONS) --bin sim-mutations

sim-exhaustive: ## visit every state of one group within bounds, then again with each rule omitted (takes long)
	$(CARGO) run --profile sim $(MUTATIONS) --bin sim-exhaustive

chaos: ## inject faults into real clusters, check all guarantees, and measure all figures (takes long; root: more faults)
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-chaos --bins
# The figures are measured even if a promise was broken.
	failed=0; target/release/chaos $(CHAOS) || failed=1; \
	$(if $(filter -h --help,$(CHAOS)),,target/release/chaos measure all || failed=1;) exit $$failed

setup: ## install or list the tools that are missing on this machine
	@scripts/setup.sh

clean: ## remove all build results, and run/ with its logs and dumps
	@status=0; scripts/launch-cluster.sh status >/dev/null 2>&1 || status=$$?; \
	if ((status != 5)); then \
	    echo "cannot clean: a cluster runs in run/; stop it with 'scripts/launch-cluster.sh stop'" >&2; exit 1; fi
	$(CARGO) clean
	rm -rf bin run

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
