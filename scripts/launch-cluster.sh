#!/usr/bin/env bash
# Starts the cluster that a cluster file describes, on this machine and on hosts behind ssh, shows its status, and stops
# it. `usage` below is the manual.
set -euo pipefail
# shellcheck source=scripts/lib/cluster.sh
. "$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")/lib/cluster.sh"

usage() {
    cat <<USAGE
usage: $program start <cluster file> [options]   start the coordinator and every server in the file
       $program status [--dir DIR] [--json]      show the status of the running cluster
       $program stop [--dir DIR] [--dump-dir DIR] [--force]
                                                 drain and dump every server, then end the cluster
       $program detach [--dir DIR]               end the coordinator; the servers continue to serve
       $program collect [--dir DIR] [DIR]        fetch the dumps of a stopped cluster from its ssh hosts
                                                 into DIR (default: the directory of the cluster)

start copies bin/server to the ssh hosts and checks every host (bin/coord --check) before it starts
anything. If the coordinator of DIR has died and its servers still run, here or on ssh hosts, start
runs a new coordinator, which takes them over. In this case it copies and checks nothing, and options
that are not given again keep their values. The cluster runs in the foreground, where Ctrl+D or Ctrl+C
stops it, unless --daemon is given:
  --daemon             return as soon as the cluster serves; '$program stop' stops it
  --dir DIR            directory of the cluster on this machine: log, ports, dumps (default: run/)
  -c, --clients-port N port of the coordinator for clients (default: 0, any free port)
  -s, --servers-port N port of the coordinator for servers (default: 0, any free port)
  --advertise IP       address at which the other hosts reach this machine; required if the file
                       mixes localhost with ssh hosts
  --ssh-config FILE    configuration file for ssh (ssh -F)
  --remote-dir DIR     directory of the server on ssh hosts (default: ftkv, below the home
                       directory)
  --restore DIR        start from the dumps in DIR; may be given several times
  --accept-loss        restore although some groups have no usable dump; their keys are lost
  --without-state      restore although every copy of the coordinator's state is lost
  --force              restore although a server of the old cluster may still run
  --hash-tags          place keys by the part in braces, as in {user:1}:name; only for a new cluster
  -t, --failure-timeout, --shards, --memory-limit, --eviction, --connection-memory, --orphan-timeout,
  --net, --on-double-fault, each with its value: see 'bin/coord --help'
If a dump fails, stop waits until it succeeds, and reports the reason:
  --dump-dir DIR       write the dumps to this directory on each server's host (an absolute path)
  --force              end servers whose dumps fail, and discard their data
ssh must work without a password, with a key or an agent.

exit status: 0 success; 1 failure, reported on stderr; 2 wrong usage; 5 no cluster runs in DIR;
             status: 0 every key has two copies; 3 degraded; 4 some keys are not served
USAGE
}

remote_dir=
ssh_config=
advertise=
clients=0
servers=0
restores=
handed_on=() # options of `start` that are passed on to bin/coord unchanged
daemon=
json=
force=
stop_flags=() # options of `stop` that are passed on to `bin/coord stop`
servers_known= # set if `bin/coord ls` reports processes of the cluster
listed=        # the output of `bin/coord ls`
into=          # the directory into which `collect` fetches the dumps

wrong_usage() {
    say "$@" "(see '$program --help')"
    exit 2
}

main() {
    local command=${1-}
    case $command in
    start | status | stop | detach | collect) shift ;;
    -h | --help | help) usage && exit 0 ;;
    '') usage >&2 && exit 2 ;;
    *) wrong_usage "unknown command '$command'" ;;
    esac
    dir=$root/run
    parse "$command" "$@"
    [[ $dir == /* ]] || dir=$PWD/$dir
    "$command"
}

# Parses the options of <command> into the variables above.
parse() {
    local command=$1 option
    shift
    while (($# > 0)); do
        option=$1 && shift
        case $command:$option in
        *:-h | *:--help) usage && exit 0 ;;
        start:--daemon) daemon=yes && continue ;;
        status:--json) json=yes && continue ;;
        stop:--force) force=yes && stop_flags+=("$option") && continue ;;
        start:--accept-loss | start:--without-state | start:--force | start:--hash-tags) handed_on+=("$option") && continue ;;
        *:--dir | stop:--dump-dir | start:-[cs] | start:--clients-port | start:--servers-port | start:--advertise | \
            start:--ssh-config | start:--remote-dir | start:-t | start:--failure-timeout | start:--shards | \
            start:--memory-limit | start:--eviction | start:--connection-memory | start:--orphan-timeout | start:--net | start:--on-double-fault | start:--restore) ;;
        *:-*) wrong_usage "'$command' has no option '$option'" ;;
        collect:*) [[ -z $into ]] || wrong_usage "give one directory, not two: '$into' and '$option'" ;;
        start:*) [[ -z $file ]] || wrong_usage "give one cluster file, not two: '$file' and '$option'" ;;
        *) wrong_usage "'$command' takes no argument ('$option')" ;;
        esac
        if [[ $option != -* ]]; then
            if [[ $command == collect ]]; then into=$option; else file=$option; fi
            continue
        fi
        [[ ${1-} ]] || wrong_usage "'$option' needs a value"
        case $option in
        --dir) dir=$1 ;;
        -c | --clients-port) clients=$1 ;;
        -s | --servers-port) servers=$1 ;;
        --advertise) advertise=$1 ;;
        --ssh-config) ssh_config=$1 ;;
        --remote-dir) remote_dir=$1 ;;
        --dump-dir) stop_flags+=("$option" "$1") ;;
        *) handed_on+=("$option" "$1") ;;
        esac
        [[ $option != --restore ]] || restores=yes
        shift
    done
}

start() {
    [[ $file ]] || wrong_usage "'start' needs a cluster file, such as config.txt"
    [[ -r $file ]] || die "cannot read the cluster file $file; check its path and its mode"
    file=$(realpath -- "$file")
    find_binaries
    may_take_over=yes
    claim_dir

    local flags=(-c "$clients" -s "$servers" ${handed_on[@]+"${handed_on[@]}"}) reach=() hosts
    [[ -z $remote_dir ]] || reach+=(--remote-dir "$remote_dir")
    [[ -z $ssh_config ]] || reach+=(--ssh-config "$ssh_config")
    flags+=(${reach[@]+"${reach[@]}"})
    [[ -z $advertise ]] || flags+=(--advertise "$advertise")
    # The coordinator parses the cluster file, so that there is only one parser.
    hosts=$("$root/bin/coord" -C "$file" --dir "$dir" "${flags[@]}" --list-hosts 9>&-) ||
        die "nothing was copied or started"
    [[ $takes_over || $restores ]] || find_servers
    if [[ $takes_over ]]; then
        say "taking over the servers that run in $dir"
    else
        # The copies come before the full check, because it runs the server on every host.
        copy_server "$hosts"
        "$root/bin/coord" -C "$file" --dir "$dir" "${flags[@]}" --check >&2 9>&- ||
            die "the check of $file failed; nothing was started; fix what is marked FAILED above"
    fi

    if [[ $daemon ]]; then start_daemon "${flags[@]}"; else start_foreground "${flags[@]}"; fi
}

# Builds the programs if cargo and the sources are available, so that no program is older than its source. If nothing
# has changed, this takes no time. Otherwise bin/ must contain the programs.
find_binaries() {
    if [[ -e $root/Cargo.toml ]] && command -v cargo >/dev/null; then
        make -C "$root" --no-print-directory all >&2 </dev/null || die "cannot build the programs; see the messages above"
    fi
    local name
    for name in coord server client; do
        [[ -x $root/bin/$name ]] || die "bin/$name is missing; build it with 'make all' (needs Rust and gcc)"
    done
}

# Sets takes_over if servers of the cluster in DIR run without a coordinator on ssh hosts, where they do not hold its
# lock.
find_servers() {
    local found=0 listed
    listed=$("$root/bin/coord" ls --dir "$dir" ${reach[@]+"${reach[@]}"} 9>&-) || found=$?
    case $found in
    0) takes_over=yes ;;
    3) ;;
    4) say "$listed" && die "servers of the cluster in $dir may still run, and hold all its data; nothing was" \
        "copied or started. Bring those hosts back and start again" ;;
    *) die "nothing was copied or started" ;;
    esac
}

# Copies bin/server to every ssh host, and checks that it runs there.
copy_server() { # <lines of host, directory and ssh configuration file, separated by tabs>
    local host there config ssh
    while IFS=$'\t' read -r host there config <&3; do
        [[ $host ]] || continue
        # ssh fails instead of prompting, and settings of the user for interactive work have no effect.
        ssh=(ssh -o BatchMode=yes -o ConnectTimeout=10 -o RemoteCommand=none -o RequestTTY=no -T)
        [[ -z $config ]] || ssh+=(-F "$config")
        say "copying the server to $host, directory $there"
        # The file first gets another name, because a running server can be replaced, but not overwritten. The
        # commands run in sh, because the login shell may be incompatible with it.
        "${ssh[@]}" -- "$host" "exec sh -c $(quoted "set -e; mkdir -p $(quoted "$there"); cd $(quoted "$there")
            cat >server.new; chmod 755 server.new; ./server.new --help >/dev/null; mv -f server.new server")" \
            <"$root/bin/server" >&2 3<&- 7>&- 9>&- ||
            die "cannot copy the server to $host, or it does not run there; try:" \
            "$(printf '%q ' "${ssh[@]}" "$host")"
    done 3<<<"$1"
}

# Prints a word in quotes for a POSIX shell.
quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

start_foreground() {
    say "starting in the foreground; Ctrl+D or Ctrl+C stops the cluster"
    printf '%s\n' "$$" >"$dir/coord.pid"
    exec "$root/bin/coord" -C "$file" --dir "$dir" --ready-fd 3 "$@" 3>"$dir/ready.json" 7>&-
}

start_daemon() {
    trap undo_start EXIT
    trap 'exit 130' INT TERM HUP
    start_coord --daemon "$@" </dev/null
    # Loading dumps may take long, and the coordinator itself limits this time.
    [[ -z $restores ]] || start_seconds=86400
    await_ready
    trap - EXIT INT TERM HUP
    local port
    port=$(clients_port)
    say "the cluster serves (coordinator: pid $coord_pid, log: $dir/coord.log)"
    printf '%q -h localhost -p %s\n' "$root/bin/client" "$port"
}

# Cleans up after a start that failed or was interrupted. Servers that it was to take over keep running; everything else
# ends.
undo_start() {
    if [[ $takes_over ]]; then
        kill -KILL "$coord_pid" 2>/dev/null || true
        say "the servers in $dir were left as they were"
    else
        end_coord "$coord_pid"
        # The cluster has never served, so no write is lost.
        force=yes
        end_leftovers
    fi
}

# Sets coord_pid to the pid of the coordinator that a script has started in DIR, if it runs. Otherwise coord_pid is
# empty, and servers_known is set if `coord ls` reports processes of the cluster, here or on ssh hosts. Exits with
# status 5 if no cluster runs.
find_coord() {
    local found=0
    coord_pid=$(cat -- "$dir/coord.pid" 2>/dev/null) || coord_pid=
    # The pid of an ended coordinator may belong to another process now, which does not hold the lock.
    [[ ! /proc/${coord_pid:-none}/fd/9 -ef $dir/lock ]] || return 0
    coord_pid=
    listed=$("$root/bin/coord" ls --dir "$dir") || found=$?
    case $found in
    0) servers_known=yes && return 0 ;;
    4) die "$listed" $'\n'"No coordinator runs, and servers of the cluster may still run; bring those hosts back" ;;
    esac
    find_leftovers
    ((${#leftovers[@]} == 0)) || return 0
    say "no cluster runs in $dir"
    exit 5
}

status() {
    local port
    find_coord
    if [[ ! $coord_pid ]] && ! coord_is_gone; then
        # This coordinator was started by hand.
        [[ $("$root/bin/coord" ls --dir "$dir" --json) =~ \"clients_port\":([0-9]+) ]] || die "$listed"
        exec "$root/bin/coord" status -h localhost -p "${BASH_REMATCH[1]}" ${json:+--json}
    fi
    if [[ ! $coord_pid ]]; then
        [[ ! $servers_known ]] || say "$listed"
        die "the coordinator in $dir has ended${leftovers[*]:+; its servers still run: pid ${leftovers[*]}};" \
            "'$program start FILE --dir $(printf %q "$dir")' takes the servers over," \
            "'$program stop --dir $(printf %q "$dir")' stops the servers and dumps their tables"
    fi
    port=$(clients_port) || die "the cluster in $dir is starting and does not serve yet; try again later"
    exec "$root/bin/coord" status -h localhost -p "$port" ${json:+--json}
}

stop() {
    local ended=0
    find_coord
    if [[ $coord_pid ]]; then
        say "stopping the cluster in $dir (coordinator: pid $coord_pid)"
        if ((${#stop_flags[@]} > 0)); then
            "$root/bin/coord" stop --dir "$dir" "${stop_flags[@]}" >&2 || ended=$?
        fi
        end_coord "$coord_pid"
    elif [[ $servers_known ]]; then
        # If the coordinator has died, this command first takes the servers over, here and on ssh hosts.
        say "stopping the cluster in $dir"
        "$root/bin/coord" stop --dir "$dir" ${stop_flags[@]+"${stop_flags[@]}"} >&2 || ended=$?
        ((ended == 0)) || die_if_servers_live
    fi
    end_leftovers || die "the stop of the cluster in $dir was not orderly; see the messages above"
    rm -f "$dir/coord.pid" "$dir/ready.json"
    ((ended == 0)) || die "the cluster in $dir has ended, but the stop failed; see the messages above"
    if ((${#stop_flags[@]} > 0)); then say "stopped"; else say "stopped; the dumps and the log are in $dir"; fi
    local host there far=
    while IFS=$'\t' read -r host there; do
        say "the dumps of the servers on $host are in $there on that host"
        far=yes
    done < <("$root/bin/coord" collect --dir "$dir" --list)
    [[ ! $far ]] || say "to fetch them: '$program collect --dir $(printf %q "$dir")'"
}

# Exits after a failed stop if servers may still run. Ending only the local servers would damage the cluster of the
# remote ones.
die_if_servers_live() {
    local found=0
    "$root/bin/coord" ls --dir "$dir" >&2 || found=$?
    ((found == 3)) || die "the cluster in $dir did not stop, and its servers still run; fix the cause above and stop it again"
}

collect() {
    [[ -z $into || $into == /* ]] || into=$PWD/$into
    exec "$root/bin/coord" collect --dir "$dir" ${into:+"$into"}
}

detach() {
    find_coord
    ! coord_is_gone || die "no coordinator runs in $dir"
    "$root/bin/coord" detach --dir "$dir" >&2 || die "cannot detach the coordinator in $dir; see the message above"
    rm -f "$dir/coord.pid" "$dir/ready.json"
}

main "$@"
