#!/usr/bin/env bash
# Implements `make run` after the build: starts the cluster of config.txt in run/, runs the client on this script's
# standard input, and stops the cluster when the client ends. No process may remain, however this script ends:
#
#   the client ends, Ctrl+C, SIGTERM, a closed terminal   finish() stops the cluster
#   SIGKILL                                               the lifeline closes. The coordinator reads the end of its
#                                                         input, as after Ctrl+D, and stops the cluster. The client
#                                                         ends at the end of its input.
#
# Exit status: that of the client, or a failure if only the stop of the cluster failed.
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
        # A signal to a process between its fork and its exec can be lost, because bash's handler takes it there.
        while kill "$client_pid" 2>/dev/null; do sleep 0.05; done
        wait "$client_pid" || true
        # A client that is killed while a line is edited leaves the terminal in raw mode.
        [[ -z $terminal ]] || stty "$terminal" 2>/dev/null || true
    fi
    if [[ $coord_pid ]]; then
        end_coord "$coord_pid"
        wait "$coord_pid" || coord_status=$?
        ((coord_status == 0)) || say "the coordinator ended with exit status $coord_status"
        end_leftovers || coord_status=1
        # After a failed start the logs have been shown already.
        ((coord_status == 0 || status != 0)) || show_logs
        rm -f "$dir/coord.pid" "$dir/ready.json" "$dir/lifeline"
    fi
    ((status != 0)) || status=$coord_status
    exit "$status"
}

# Runs the client in the background and waits for it. bash runs a trap only after a foreground command has ended, so
# SIGTERM would have to wait for a client that waits for input.
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

# The lifeline is the coordinator's standard input: a pipe without data, whose write end only this script holds open. It
# is opened for reading and writing (descriptor 8), so that opening it does not block.
rm -f "$dir/lifeline"
mkfifo "$dir/lifeline"
exec 8<>"$dir/lifeline"

say "starting the cluster of config.txt (log: run/coord.log)"
start_coord -c 0 -s 0 <"$dir/lifeline"
await_ready
port=$(clients_port)
say "serving on localhost, port $port; Ctrl+D ends the client and the cluster"
run_client "$port"
