# shellcheck shell=bash
# What run.sh and launch-cluster.sh share: one coordinator that runs on this machine, and the
# directory that holds its state.
#
#   DIR/lock         held (flock, shared, descriptor 9) by every process of the cluster. It keeps a
#                    second cluster out, and finds those that outlive their coordinator.
#   DIR              held (flock, descriptor 7) by a script while it starts something there
#   DIR/coord.lock   held by the coordinator, by itself
#   DIR/coord.pid    the coordinator's process id
#   DIR/ready.json   what the coordinator wrote to --ready-fd once the cluster served
#   DIR/coord.log    its log;  DIR/coord.out  what it printed
#
# The caller has `set -euo pipefail`.

# A coordinator gives each server 5 s to drain; this only bounds what should never happen.
start_seconds=120
# How often a stop that takes long, because large tables are being dumped, says that it goes on.
readonly PATIENCE_SECONDS=10
# A server that is told to end by a signal drains for 5 s at most, then writes its dumps: one that writes
# nothing for so long hangs.
readonly LEFTOVER_SECONDS=10

program=${0##*/}
dir=  # the caller's to set: DIR, as an absolute path
file= # the caller's to set: the cluster file
may_take_over= # the caller's to set
root=$(CDPATH='' cd -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/../.." && pwd)
coord_pid=
leftovers=()
takes_over= # whether servers run in DIR that have lost their coordinator

say() { printf '%s: %s\n' "$program" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Whether a process runs. A dead one that nobody has waited for yet has no executable any more; in a
# container whose first process is no init, a daemon stays such a zombie for good.
alive() { [[ -e /proc/$1/exe ]]; }

# Takes DIR for this process and for all that it starts. Sets takes_over where that is allowed and
# servers run there without a coordinator.
claim_dir() {
    local launch=scripts/launch-cluster.sh there
    there="--dir $(printf %q "$dir")"
    mkdir -p "$dir"
    exec 7<"$dir" 9>>"$dir/lock"
    await_killed_coord
    { flock --nonblock 7 && coord_is_gone; } || die "a cluster is running in $dir; to stop it: '$launch stop $there'"
    if ! flock --nonblock 9; then
        [[ $may_take_over ]] || die "a cluster is running in $dir without a coordinator;" \
            "'$launch start FILE $there' takes it over, '$launch stop $there' stops it"
        takes_over=yes
    fi
    # Shared, because whoever is taken over holds it too.
    flock --nonblock --shared 9 || die "cannot lock $dir/lock: a process that belongs to no cluster holds it; stop that process"
    rm -f "$dir/coord.pid" "$dir/ready.json"
}

coord_is_gone() { [[ ! -e $dir/coord.lock ]] || flock --nonblock --shared "$dir/coord.lock" true; }

# A coordinator that was killed keeps its lock until its last thread has gone, a moment later.
await_killed_coord() {
    local pid tries
    read -r pid 2>/dev/null <"$dir/coord.pid" || return 0
    for ((tries = 0; tries < 40; tries++)); do
        ! coord_is_gone && ! alive "$pid" || return 0
        sleep 0.05
    done
}

# Starts the coordinator in the background, in a session of its own: Ctrl+C in this terminal must
# reach this script alone, which then stops the cluster in order. Standard input is the caller's,
# further arguments are coord's.
start_coord() {
    : >"$dir/ready.json"
    # What it prints names hosts and files: for the owner alone, as the logs are.
    : >>"$dir/coord.out"
    chmod 600 "$dir/coord.out"
    setsid "$root/bin/coord" -C "$file" --dir "$dir" -l "$dir/coord.log" --ready-fd 3 "$@" \
        <&0 >"$dir/coord.out" 2>&1 3>"$dir/ready.json" 7>&- 8>&- &
    coord_pid=$!
    printf '%s\n' "$coord_pid" >"$dir/coord.pid"
}

# Prints the clients' port that DIR/ready.json names; fails while there is no whole line in it.
clients_port() {
    local line
    IFS= read -r line 2>/dev/null <"$dir/ready.json" || return 1
    [[ $line =~ \"clients_port\":[[:space:]]*([0-9]+) ]] ||
        die "cannot read the clients port: no clients_port in $dir/ready.json: $line"
    printf '%s\n' "${BASH_REMATCH[1]}"
}

# Waits until the cluster serves.
await_ready() {
    local deadline=$((SECONDS + start_seconds))
    until [[ -s $dir/ready.json ]] && clients_port >/dev/null; do
        alive "$coord_pid" || start_failed "the coordinator ended before the cluster served"
        ((SECONDS < deadline)) || start_failed "the cluster did not serve within $start_seconds s"
        sleep 0.05
    done
}

start_failed() {
    say "$1"
    show_logs
    [[ $takes_over ]] ||
        say "to check what the cluster needs (io_uring, memlock, ports, ssh): 'bin/coord --check -C $(printf %q "$file")'"
    exit 1
}

show_logs() {
    local log
    for log in "$dir/coord.out" "$dir/coord.log"; do
        [[ ! -s $log ]] || { say "the end of $log:" && tail -n 15 "$log" | sed 's/^/    /' >&2; }
    done
}

# Asks the coordinator to end the cluster, and waits until it has. It bounds its stop itself, by how much
# there is to dump; who kills it loses dumps that are being written.
end_coord() { # <pid>
    kill -TERM "$1" 2>/dev/null || return 0
    local next=$((SECONDS + PATIENCE_SECONDS))
    while alive "$1"; do
        if ((SECONDS >= next)); then
            say "the coordinator (pid $1) is still stopping the cluster; its log shows the progress of the dumps"
            next=$((SECONDS + PATIENCE_SECONDS))
        fi
        sleep 0.05
    done
}

# What the dumps in DIR amount to by now.
dumped_bytes() { du -sb --total "$dir"/server_*.primary* "$dir"/server_*.secondary* 2>/dev/null | tail -n 1; }

# Sets leftovers to the processes of the cluster that have outlived its coordinator. Told by the lock,
# not by name: servers of other clusters run on this machine too.
find_leftovers() {
    local process executable
    leftovers=()
    for process in /proc/[0-9]*; do
        [[ $process/fd/9 -ef $dir/lock ]] || continue
        executable=$(readlink "$process/exe") || continue
        # The script that holds the lock for its cluster (this one, or a `make run`) is no leftover.
        [[ ${executable##*/} == bash ]] || leftovers+=("${process#/proc/}")
    done
}

# Ends what is left of the cluster after its coordinator, which must be nothing: fails if there was
# something. Servers dump their tables first. Servers that another coordinator has taken over, which was
# started by hand, are ended by that one, in order.
end_leftovers() {
    local other
    if ! coord_is_gone && other=$(<"$dir/coord.lock") && [[ $other ]]; then
        say "another coordinator (pid $other) has taken the cluster over; stopping it"
        end_coord "$other"
    fi
    find_leftovers
    ((${#leftovers[@]} > 0)) || return 0
    say "ending processes that still run without their coordinator: pid ${leftovers[*]} (see $dir/coord.log)"
    kill -TERM "${leftovers[@]}" 2>/dev/null || true
    local deadline=$((SECONDS + LEFTOVER_SECONDS)) before='' now
    while find_leftovers && ((${#leftovers[@]} > 0 && SECONDS < deadline)); do
        now=$(dumped_bytes) || now=
        [[ $now == "$before" ]] || deadline=$((SECONDS + LEFTOVER_SECONDS))
        before=$now
        sleep 0.1
    done
    ((${#leftovers[@]} > 0)) || return 1
    # A server that cannot dump keeps its tables in memory: only whoever says --force gives them up.
    if [[ ${force-} ]]; then
        kill -KILL "${leftovers[@]}" 2>/dev/null || true
    else
        say "still running, with tables that are not dumped: pid ${leftovers[*]}; their logs in $dir give the reason." \
            "They dump and exit once it is fixed; 'kill -KILL' gives their tables up"
    fi
    return 1
}
