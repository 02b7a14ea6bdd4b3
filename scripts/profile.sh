#!/usr/bin/env bash
# Implements `make profile`. It starts three servers with one shard each, and loads one of them with kv-bench, first
# with GETs and then with PUTs. Meanwhile perf samples that server's CPU time. Then the script runs both operations on
# the state machines of core/benches/replica.rs and shard/benches/shard.rs under callgrind, with two numbers of
# operations. The difference yields the number of instructions per operation, which does not depend on other load of the
# machine. (A whole server does not run under valgrind, because of io_uring.) All results are in target/profile/.
#
#   get.perf put.perf       the functions, by their share of the server's CPU time
#   replica.get.calls ...   the functions of the state machines, by instructions (callgrind_annotate)
#
# If perf or valgrind is missing, its part is skipped with a message.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly bin=target/release dir=target/profile
readonly keys=100000 connections=50 depth=16 seconds=4
coord_pid=

say() { printf 'profile: %s\n' "$*"; }

stop() {
    [[ $coord_pid ]] || return 0
    kill "$coord_pid" 2>/dev/null || true
    wait "$coord_pid" || say "the stop of the cluster failed; see $dir/coord.log"
    coord_pid=
}
trap stop EXIT

# Starts a cluster. Sets port to its clients port, and server to the pid of server 0.
start() {
    local ready=$dir/ready.json
    rm -rf "$dir/cluster" && mkdir -p "$dir/cluster" && : >"$ready"
    printf '3\n%s' $'localhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n' >"$dir/cluster.txt"
    "$bin/coord" --daemon --shards 1 -C "$dir/cluster.txt" \
        --dir "$dir/cluster" -l "$dir/coord.log" --ready-fd 3 3>"$ready" &
    coord_pid=$!
    local attempts=600
    until [[ -s $ready ]]; do
        kill -0 "$coord_pid" 2>/dev/null || { say "the cluster did not start; see $dir/coord.log" && exit 1; }
        ((attempts-- > 0)) || { say "the cluster did not become ready; see $dir/coord.log" && exit 1; }
        sleep 0.1
    done
    port=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["clients_port"])' "$ready")
    server=$("$bin/coord" status -p "$port" --json |
        python3 -c 'import json,sys; print(json.load(sys.stdin)["servers"][0]["pid"])')
}

# Runs kv-bench with keys of group 0 only, whose primary is server 0.
load() { # <percent of reads> [flag...]
    local reads=$1
    shift
    "$bin/kv-bench" --target "kv+wire://localhost:$port" --group 0 --keys "$keys" --reads "$reads" \
        --connections "$connections" --depth "$depth" --server-pid "$server" "$@"
}

sample() {
    start
    load 100 --load --duration 1 >/dev/null
    local work reads
    for work in get put; do
        [[ $work == get ]] && reads=100 || reads=0
        perf record --quiet --freq 2500 --pid "$server" --output "$dir/$work.data" -- sleep "$seconds" &
        load "$reads" --duration "$seconds" --warm-up 0
        wait $! || { say "perf cannot sample here; see its message above" && return 1; }
        perf report --input "$dir/$work.data" --stdio --no-children >"$dir/$work.perf" 2>/dev/null
        say "$work, by CPU time (the complete list: $dir/$work.perf)"
        # `head` would exit early. Its input would then end with SIGPIPE, and pipefail would end this script.
        awk '!/^#/ && NF && ++lines <= 15' "$dir/$work.perf"
        awk -v work="$work" '/^ +[0-9.]+%/ { if (/\[k\]/) kernel += $1; else own += $1 }
            END { printf "profile: %s: %.0f %% in the kernel, %.0f %% in user space\n", work, kernel, own }' \
            "$dir/$work.perf"
    done
    stop
}

# Prints the number of instructions that a state machine executes for a number of operations. The shard's benchmark
# encodes each request; only its function `execute` counts.
counted() { # <program> <work> <operations>
    local file only=()
    [[ $1 != */shard-* ]] || only=('--toggle-collect=*Pair*execute*')
    file=$dir/$(basename "${1%-*}").$2.callgrind
    rm -f "$file"
    valgrind --quiet --tool=callgrind "${only[@]}" --callgrind-out-file="$file" "$1" --steps "$2" "$3"
    callgrind_annotate "$file" >"${file%.callgrind}.calls"
    sed -n 's/^totals: //p' "$file"
}

count() { # <crate> <benchmark> <description> <operations...>
    local program work few many
    local -r n=20000
    program=$(cargo bench --locked -p "$1" --bench "$2" --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
    [[ -x $program ]] || { say "cannot build the benchmark $2 (cargo bench -p $1)" && exit 1; }
    for work in "${@:4}"; do
        few=$(counted "$program" "$work" "$n") || exit 1
        many=$(counted "$program" "$work" "$((3 * n))") || exit 1
        say "$work: $(((many - few) / (2 * n))) instructions per operation in $3 (for a PUT: in both replicas;" \
            "batches of 16 unless single), by callgrind: $((3 * n)) minus $n operations; functions: $dir/$2.$work.calls"
    done
}

mkdir -p "$dir"
if command -v perf >/dev/null; then sample; else say "perf is missing, nothing was sampled; install the Debian package linux-perf"; fi
if command -v valgrind >/dev/null; then
    count kv-core replica "the state machine of a replica" get put
    count kv-shard shard "a whole shard, from received to sent bytes" get put put-if add single-get single-put
else say "valgrind is missing, no instructions were counted; install the Debian package valgrind"
fi
