# The one way to build, test and run; continuous integration calls `make test` and nothing else.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: all run test lint header abi man install uninstall bench bench-client compare profile sim sim-mutations sim-exhaustive chaos setup clean help

# Cargo.lock is what was tested: no command here may change it.
CARGO := cargo
LOCKED := --locked
# What can leave a rule out has a target folder of its own: it must never be mistaken for what ships.
MUTATIONS := $(LOCKED) --target-dir target/mutations -p kv-sim --features mutations
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/lib/*.sh)

all: ## build the executables and the C library (release), in bin/
	@scripts/setup.sh build
	@scripts/build.sh

run: all ## start three servers on this machine and open the client; Ctrl+D ends both
	@scripts/run.sh

test: lint ## everything that continuous integration runs
	$(CARGO) test --workspace $(LOCKED) --no-fail-fast
# Once more over epoll, where every call of io_uring is denied; the first run had the engine that servers take by
# themselves.
	KV_TEST_NET=epoll $(CARGO) test $(LOCKED) --no-fail-fast --test both_engines
	$(CARGO) test $(MUTATIONS) --test exhaustive
# Some two minutes of the simulator: fixed seeds, with every assertion on.
	$(CARGO) run --profile sim $(LOCKED) -p kv-sim --bin sim -- --seeds 220
# Two minutes of faults, and a few ordinary days, on real processes.
# The executables beside it must be built from this very source.
	$(CARGO) build --workspace $(LOCKED) --bins
	$(CARGO) run $(LOCKED) -p kv-chaos --bin chaos -- --slice
# Floods of requests: no view may change.
	$(CARGO) run $(LOCKED) -p kv-chaos --bin chaos -- measure floods --quick --seconds 2
	$(CARGO) run $(LOCKED) -p kv-chaos --bin chaos -- measure floods --quick --seconds 2 --net epoll --only "open loop"
# Once through the benchmarks and the comparison without measuring, so that all of them keep working: with what is built
# already. Without a name cargo would also run every unit test again.
	$(CARGO) bench --profile dev --workspace $(LOCKED) --bench '*' -- --test
	target/debug/kv-compare --quick

lint: setup ## formatting, clippy, documentation, licences, scripts, the C header and ABI
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(LOCKED) -- -D warnings
	$(CARGO) clippy $(MUTATIONS) -p kv-core -p kv-shard --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps $(LOCKED)
	$(CARGO) deny --workspace $(LOCKED) check --hide-inclusion-graph licenses bans sources
	shellcheck --external-sources $(SCRIPTS)
	scripts/header.sh --check
	scripts/abi.sh --check

header: ## write include/kvclient.h anew from ffi/
	scripts/header.sh

abi: ## write ffi/abi/ anew from include/kvclient.h: what linked programs rely on
	scripts/abi.sh

man: ## write docs/man/*.1 anew from what --help says
	RENEW_MANUAL=1 $(CARGO) test $(LOCKED) --test commands manual::

install: ## executables, C library and manual to PREFIX (/usr/local), below DESTDIR
	@scripts/install.sh install

uninstall: ## remove the files that install has put there, with the same PREFIX and DESTDIR
	@scripts/install.sh uninstall

bench: ## all benchmarks (minutes; criterion's results in target/criterion)
	$(CARGO) bench --workspace $(LOCKED) --bench '*'

bench-client: ## what an operation costs a C program, beside a bare socket loop and hiredis; to benches/results/
	@scripts/setup.sh bench
	$(CARGO) bench $(LOCKED) --bench client -- --report

compare: ## this store beside Redis, Valkey, memcached and the bare floors (minutes; benches/results/)
	@scripts/setup.sh build
	@scripts/setup.sh compare
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-bench --bins
	PATH=$$PWD/target/peers:$$PATH target/release/kv-compare $(COMPARE)

profile: ## where a server's time goes for GET and PUT, and its instructions an operation (target/profile/)
	@scripts/setup.sh build
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-bench --bins
	@scripts/profile.sh

sim: ## the simulator: fixed seeds, then fresh ones for ten minutes
	$(CARGO) run --profile sim $(LOCKED) -p kv-sim --bin sim -- --seeds 64 --minutes 10 --enough

sim-mutations: ## which rules the simulator misses when they are left out (long)
	$(CARGO) run --profile sim $(MUTATIONS) --bin sim-mutations

sim-exhaustive: ## every state of one group within bounds, then with each rule left out (long)
	$(CARGO) run --profile sim $(MUTATIONS) --bin sim-exhaustive

chaos: ## faults and ordinary days on real processes, every promise checked; then all figures (long; as root it cuts links and mounts, too)
	$(CARGO) build --release $(LOCKED) -p ftkv -p kv-chaos --bins
# A fault that was not survived must not cost the figures.
	failed=0; target/release/chaos $(CHAOS) || failed=1; \
	$(if $(filter -h --help,$(CHAOS)),,target/release/chaos measure all || failed=1;) exit $$failed

setup: ## install or name what is missing on this machine
	@scripts/setup.sh

clean: ## remove everything that was built, and run/ with its logs and dumps
	@status=0; scripts/launch-cluster.sh status >/dev/null 2>&1 || status=$$?; \
	if ((status != 5)); then \
	    echo "a cluster runs in run/; 'scripts/launch-cluster.sh stop' stops it" >&2; exit 1; fi
	$(CARGO) clean
	rm -rf bin run

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
