#!/usr/bin/env bash
# What `make run` does once everything is built: starts the cluster of config.txt in run/, opens the
# client on this script's standard input, and stops the cluster when the client ends. No process may
# be left behind, however this script ends:
#
#   the client ends, Ctrl+C, SIGTERM, a closed terminal   finish() stops the cluster in order
#   SIGKILL                                               the lifeline breaks, which the coordinator
#                                                         takes for Ctrl+D: it stops in order itself
#                                                         (and the client at the end of its input)
#
# Exit status: the client's, or the coordinator's if only that failed.
set -euo pipefail
# shellcheck source=scripts/lib/cluster.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/cluster.sh"
program="make run"
dir=$root/run
file=$root/config.txt
client_pid=
terminal=

finish() {
    local status=$? coord_status=0
    trap - EXIT
    trap '' INT TERM HUP
    if [[ $client_pid ]]; then
        kill "$client_pid" 2>/dev/null || true
        wait "$client_pid" || true
        # A client that was killed while it was editing a line leaves the terminal raw.
        [[ -z $terminal ]] || stty "$terminal" 2>/dev/null || true
    fi
    if [[ $coord_pid ]]; then
        end_coord "$coord_pid"
        wait "$coord_pid" || coord_status=$?
        ((coord_status == 0)) || say "the coordinator ended with exit status $coord_status"
        end_leftovers || coord_status=1
        # Where the start failed, the logs have been shown.
        ((coord_status == 0 || status != 0)) || show_logs
        rm -f "$dir/coord.pid" "$dir/ready.json" "$dir/lifeline"
    fi
    ((status != 0)) || status=$coord_status
    exit "$status"
}

# In the background and waited for, because bash runs a trap only after a foreground command ends:
# SIGTERM must not wait for a client that waits for input.
run_client() { # <port>
    local status=0
    terminal=$(stty -g 2>/dev/null) || terminal=
    "$root/bin/client" -h localhost -p "$1" <&0 7>&- 8>&- 9>&- &
    client_pid=$!
    wait "$client_pid" || status=$?
    client_pid=
    say "stopping the cluster; its dumps and its log are in run/"
    return "$status"
}

claim_dir
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The coordinator's standard input: a pipe that nobody writes to and that this script alone holds
# open (descriptor 8; both ends, so that opening it does not wait).
rm -f "$dir/lifeline"
mkfifo "$dir/lifeline"
exec 8<>"$dir/lifeline"

say "starting the cluster of config.txt (log: run/coord.log)"
start_coord -c 0 -s 0 <"$dir/lifeline"
await_ready
port=$(clients_port)
say "serving on localhost, port $port; Ctrl+D ends client and cluster"
run_client "$port"
