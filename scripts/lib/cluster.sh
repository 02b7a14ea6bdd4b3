# shellcheck shell=bash
# Functions that run.sh and launch-cluster.sh share, for a coordinator on this machine and the directory DIR of its
# cluster.
#
#   DIR/lock         locked (flock, shared, descriptor 9) by every local process of the cluster. It prevents a second
#                    cluster in DIR, and identifies servers that outlive their coordinator.
#   DIR              locked (flock, descriptor 7) by a script while it starts a coordinator there
#   DIR/coord.lock   locked by the coordinator itself, and contains its process id
#   DIR/coord.pid    the process id of the coordinator that a script has started
#   DIR/ready.json   the line that the coordinator writes to --ready-fd when the cluster serves
#   DIR/coord.log    the log of the coordinator
#   DIR/coord.out    the standard output and standard error of the coordinator
#
# The caller must set `set -euo pipefail`.

# The timeout of a start, in seconds.
start_seconds=120
# The interval between messages during a long stop, for example while large tables are dumped.
readonly PATIENCE_SECONDS=10
# A server that has received SIGTERM counts as hung if it writes no dump for this time. It drains for at most 5 s, and
# then writes its dumps.
readonly LEFTOVER_SECONDS=10

program=${0##*/}
dir=  # set by the caller: DIR, as an absolute path
file= # set by the caller: the cluster file
may_take_over= # set by the caller if it can take over servers without a coordinator
root=$(CDPATH='' cd -- "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/../.." && pwd)
coord_pid=
leftovers=()
takes_over= # set if servers without a coordinator run and are to be taken over

say() { printf '%s: %s\n' "$program" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Succeeds if a process runs. A zombie has no executable. In a container whose first process reaps no orphans, a daemon
# that has ended remains a zombie forever.
alive() { [[ -e /proc/$1/exe ]]; }

# Locks DIR for this process and its children. If servers run there without a coordinator, sets takes_over, or exits
# unless may_take_over is set. Exits if a coordinator runs.
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
    # The lock is shared, because servers that are taken over hold it too.
    flock --nonblock --shared 9 || die "cannot lock $dir/lock: a process holds it exclusively; stop that process"
    rm -f "$dir/coord.pid" "$dir/ready.json"
}

coord_is_gone() { [[ ! -e $dir/coord.lock ]] || flock --nonblock --shared "$dir/coord.lock" true; }

# Waits up to 2 s for the end of a killed coordinator, which keeps its lock until its last thread has exited.
await_killed_coord() {
    local pid tries
    read -r pid 2>/dev/null <"$dir/coord.pid" || return 0
    for ((tries = 0; tries < 40; tries++)); do
        ! coord_is_gone && ! alive "$pid" || return 0
        sleep 0.05
    done
}

# Starts the coordinator in the background, in its own session: Ctrl+C in this terminal must reach only this script,
# which then stops the cluster. The coordinator gets the standard input and the arguments of this function.
start_coord() {
    : >"$dir/ready.json"
    # The output names hosts and files, so only the owner may read it, as with the logs.
    : >>"$dir/coord.out"
    chmod 600 "$dir/coord.out"
    setsid "$root/bin/coord" -C "$file" --dir "$dir" -l "$dir/coord.log" --ready-fd 3 "$@" \
        <&0 >"$dir/coord.out" 2>&1 3>"$dir/ready.json" 7>&- 8>&- &
    coord_pid=$!
    printf '%s\n' "$coord_pid" >"$dir/coord.pid"
}

# Prints the clients port from DIR/ready.json. Fails while the file contains no complete line.
clients_port() {
    local line
    IFS= read -r line 2>/dev/null <"$dir/ready.json" || return 1
    [[ $line =~ \"clients_port\":[[:space:]]*([0-9]+) ]] ||
        die "cannot read the clients port: no clients_port in $dir/ready.json: $line"
    printf '%s\n' "${BASH_REMATCH[1]}"
}

# Waits until the cluster serves. Exits if the coordinator ends first, or after start_seconds.
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

# Sends SIGTERM to the coordinator, which then stops the cluster, and waits until it has exited. There is no timeout:
# the coordinator limits the time itself, by the amount of data to dump, and killing it would lose unfinished dumps.
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

# Prints the total size of the dumps in DIR so far.
dumped_bytes() { du -sb --total "$dir"/server_*.primary* "$dir"/server_*.secondary* 2>/dev/null | tail -n 1; }

# Sets leftovers to the processes, other than scripts, that hold the lock of DIR. After the end of the coordinator,
# these are the servers that have outlived it. Names would also match servers of other clusters on this machine.
find_leftovers() {
    local process executable
    leftovers=()
    for process in /proc/[0-9]*; do
        [[ $process/fd/9 -ef $dir/lock ]] || continue
        executable=$(readlink "$process/exe") || continue
        # The script that has started the cluster (this one, or a `make run`) holds the lock too.
        [[ ${executable##*/} == bash ]] || leftovers+=("${process#/proc/}")
    done
}

# Ends the processes that remain after the end of the coordinator, and fails if there were any. Servers dump their
# tables first. If another coordinator, which was started by hand, has taken the servers over, that coordinator stops
# them.
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
    # A server that cannot dump keeps its tables in memory. Only --force discards them.
    if [[ ${force-} ]]; then
        kill -KILL "${leftovers[@]}" 2>/dev/null || true
    else
        say "still running, with tables that are not dumped: pid ${leftovers[*]}; their logs in $dir give the reason." \
            "They dump and exit once it is fixed; 'kill -KILL' discards their tables"
    fi
    return 1
}
