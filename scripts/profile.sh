#!/usr/bin/env bash
# What `make profile` does: three servers with one shard each, of which one gets GETs and then PUTs from
# kv-bench, and its time is sampled (perf). Then the same under callgrind, twice with different numbers of
# operations: the difference says how many instructions of the server one operation takes, a figure that no
# other load of the machine changes. Everything is kept in target/profile/.
#
#   get.perf put.perf       the functions, by their share of the server's time
#   get.calls put.calls     the same by instructions (callgrind_annotate)
#
# Without perf or without valgrind that half is left out, and said so.
set -euo pipefail
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly bin=target/release dir=target/profile
readonly keys=100000 connections=50 depth=16 seconds=4
coord_pid=

say() { printf 'profile: %s\n' "$*"; }

stop() {
    [[ $coord_pid ]] || return 0
    kill "$coord_pid" 2>/dev/null || true
    wait "$coord_pid" || say "the cluster did not end well; see $dir/coord.log"
    coord_pid=
}
trap stop EXIT

# Starts a cluster whose servers are this program; $port and $server (the pid of the first) say where.
start() { # <server program> [flag...]
    local program=$1 ready=$dir/ready.json
    shift
    rm -rf "$dir/cluster" && mkdir -p "$dir/cluster"
    printf '3\n%s' $'localhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n' >"$dir/cluster.txt"
    "$bin/coord" --daemon --shards 1 --server-binary "$program" -C "$dir/cluster.txt" \
        --dir "$dir/cluster" -l "$dir/coord.log" --ready-fd 3 "$@" 3>"$ready" &
    coord_pid=$!
    local patience=600
    until [[ -s $ready ]]; do
        kill -0 "$coord_pid" 2>/dev/null || { say "the cluster did not start; see $dir/coord.log" && exit 1; }
        ((patience-- > 0)) || { say "the cluster does not get ready; see $dir/coord.log" && exit 1; }
        sleep 0.1
    done
    port=$(python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["clients_port"])' "$ready")
    server=$("$bin/coord" status -p "$port" --json |
        python3 -c 'import json,sys; print(json.load(sys.stdin)["servers"][0]["pid"])')
}

# The load: all of it for the first server's keys.
load() { # <percent of reads> [flag...]
    local reads=$1
    shift
    "$bin/kv-bench" --target "kv+wire://localhost:$port" --group 0 --keys "$keys" --reads "$reads" \
        --connections "$connections" --depth "$depth" --server-pid "$server" "$@"
}

sample() {
    start "$bin/server"
    load 100 --load --duration 1 >/dev/null
    local work reads
    for work in get put; do
        [[ $work == get ]] && reads=100 || reads=0
        perf record --quiet --freq 2500 --pid "$server" --output "$dir/$work.data" -- sleep "$seconds" &
        load "$reads" --duration "$seconds" --warm-up 0
        wait $! || { say "perf cannot sample here (see above)" && return 1; }
        perf report --input "$dir/$work.data" --stdio --no-children >"$dir/$work.perf" 2>/dev/null
        say "$work, by time (all of it: $dir/$work.perf)"
        grep -v '^#' "$dir/$work.perf" | grep -v '^$' | head -15
    done
    stop
}

# Instructions that a server took for so many operations, from start to end.
counted() { # <work> <percent of reads> <operations>
    start "$dir/server-in-callgrind" -t 60
    load "$2" --count "$3" --warm-up 0 >/dev/null
    stop
    # Of the three servers, the one that was loaded took most.
    local file
    file=$(grep -H '^totals:' "$dir"/cluster/callgrind.* | sort -t: -k3 -n | tail -1 | cut -d: -f1)
    callgrind_annotate "$file" >"$dir/$1.calls"
    sed -n 's/^totals: //p' "$file"
}

count() {
    cat >"$dir/server-in-callgrind" <<EOF
#!/usr/bin/env bash
exec valgrind --quiet --tool=callgrind --callgrind-out-file=callgrind.%p "$PWD/$bin/server" "\$@"
EOF
    chmod +x "$dir/server-in-callgrind"
    local work reads few many
    readonly n=20000
    for work in get put; do
        [[ $work == get ]] && reads=100 || reads=0
        few=$(counted "$work" "$reads" "$n")
        many=$(counted "$work" "$reads" "$((3 * n))")
        say "$work: $(((many - few) / (2 * n))) instructions an operation of the server that serves it, by" \
            "callgrind ($((3 * n)) less $n operations; functions: $dir/$work.calls)"
    done
}

mkdir -p "$dir"
if command -v perf >/dev/null; then sample; else say "without perf (Debian package linux-perf)"; fi
if command -v valgrind >/dev/null; then count; else say "without callgrind (Debian package valgrind)"; fi
