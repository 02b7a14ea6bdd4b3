//! The scripts that ssh runs on other machines.

use kv_daemon::identity::Process;
use kv_protocol::cluster_file::ServerLine;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, Incarnation};

use crate::quote;
use crate::spawn::exit::MAX_QUOTED_BYTES;
use crate::spawn::names::{KEY_FROM_STANDARD_INPUT, error_name, log_name};

/// Returns the command of a remote server as an operator would enter it.
pub(crate) fn plain_command(remote_dir: &str, arguments: &[String]) -> String {
    format!("cd {} && ./server {}", quote::word(remote_dir), quote::words(arguments))
}

/// Returns the script that starts a server in a separate session, waits for its end, and prints its start and its exit.
/// The cluster's key is the first line of standard input and is passed on through a pipe, because command lines are
/// visible to every user. When standard input is closed, the script ends and the server keeps running.
pub(in crate::spawn) fn start_script(
    remote_dir: &str,
    line: &ServerLine,
    arguments: &[String],
) -> String {
    let (dir, errors, log) = (quote::word(remote_dir), error_name(line), log_name(line));
    format!(
        "cd {dir} || exit 1\n\
         [ -x ./server ] || {{ echo \"no executable file 'server' in $PWD\" >&2; exit 1; }}\n\
         umask 077\n\
         touch {log}; before=$(wc -c <{log})\n\
         read -r key || exit 1\n\
         exec 3<&0 </dev/null\n\
         echo \"$key\" | setsid ./server {} {} 3<&- >/dev/null 2>{errors} &\n\
         pid=$!\n\
         said=$(./server --name $pid 2>/dev/null 3<&-)\n\
         case $said in \"started $pid \"*) echo \"$said\";; *) echo started $pid;; esac\n\
         {{ while read -r line; do :; done; kill $$; }} <&3 >/dev/null 2>&1 &\n\
         watch=$!\n\
         exec 3<&-\n\
         wait $pid\n\
         status=$?\n\
         kill $watch 2>/dev/null\n\
         wait $watch 2>/dev/null\n\
         if [ -s {errors} ]; then tail -c {MAX_QUOTED_BYTES} {errors} >&2\n\
         elif [ $status -lt 128 ]; then tail -c +$((before + 1)) {log} | tail -c {MAX_QUOTED_BYTES} >&2; fi\n\
         echo exited $pid $status\n",
        quote::words(arguments),
        KEY_FROM_STANDARD_INPUT.join(" ")
    )
}

/// Returns the script that queries processes with the server's executable on the host. The query reads no input.
pub(in crate::spawn) fn ask_script(
    remote_dir: &str,
    question: &str,
    processes: &[Process],
) -> String {
    format!("{} </dev/null\n", ask_command(remote_dir, question, processes))
}

pub(in crate::spawn) fn ask_command(
    remote_dir: &str,
    question: &str,
    processes: &[Process],
) -> String {
    let dir = quote::word(remote_dir);
    let words: Vec<String> = processes.iter().map(ToString::to_string).collect();
    server_command(&dir, question, &words)
}

/// Returns the command that runs the server's executable in its directory with a query.
fn server_command(dir: &str, question: &str, words: &[String]) -> String {
    format!(
        "cd {dir} || exit 1\n\
         [ -x ./server ] || {{ echo \"no executable file 'server' in $PWD, which is needed to find the \
         processes that run\" >&2; exit 1; }}\n\
         exec ./server {question} {}",
        words.join(" ")
    )
}

/// Returns the script that reports which of these dumps a process has completed.
pub(in crate::spawn) fn dumped_script(
    remote_dir: &str,
    writer: Incarnation,
    names: &[String],
) -> String {
    let mut words = vec![writer.to_string()];
    words.extend(names.iter().cloned());
    format!("{}\n", server_command(&quote::word(remote_dir), "--dumped", &words))
}

/// Returns the script that waits for the end of a server that another connection started. The script ends earlier if
/// its own connection ends.
pub(in crate::spawn) fn watch_script(remote_dir: &str, process: &Process) -> String {
    let Process { pid, start_time, namespace, .. } = process;
    let ask = ask_command(remote_dir, "--watch", &[*process]);
    format!("echo started {pid} {start_time} {namespace}\n{ask}\n")
}

/// Returns the script that reports for each of these processes whether it is running.
pub(in crate::spawn) fn look_script(remote_dir: &str, processes: &[Started]) -> String {
    let processes: Vec<Process> = processes.iter().map(Process::from).collect();
    ask_script(remote_dir, "--look", &processes)
}

/// Returns the script that kills a process.
pub(in crate::spawn) fn end_script(remote_dir: &str, process: &Process) -> String {
    ask_script(remote_dir, "--end", &[*process])
}

/// Returns the script that lists the servers that belong to a cluster or run in the directory. Because of the brackets,
/// the script does not match itself.
pub(in crate::spawn) fn servers_script(remote_dir: &str, cluster: ClusterId) -> String {
    let (dir, name) = (quote::word(remote_dir), cluster.to_string());
    let (first, rest) = name.split_at(1);
    format!(
        "cd {dir} || exit 1\nuser=$(id -u)\n\
         for process in /proc/[0-9]*; do\n  \
         grep -qs -e '--[i]ncarnation' $process/cmdline || continue\n  \
         [ $user = 0 ] || grep -qs \"^Uid:[[:space:]]*$user[[:space:]]\" $process/status || continue\n  \
         if grep -qs -e '[{first}]{rest}' $process/cmdline; then echo server ${{process#/proc/}}\n  \
         elif [ $process/cwd -ef . ]; then echo server ${{process#/proc/}}\n  \
         elif ! readlink $process/cwd >/dev/null 2>&1; then echo hidden ${{process#/proc/}}; fi\ndone\necho asked\n"
    )
}

/// Returns the script that kills the processes with these incarnations. Because of the brackets, the script does not
/// match itself.
pub(in crate::spawn) fn strays_script(names: &[Incarnation]) -> String {
    let patterns = names.iter().map(|name| {
        let name = name.to_string();
        let (first, rest) = name.split_at(1);
        format!("-e '[{first}]{rest}'")
    });
    let patterns: Vec<String> = patterns.collect();
    format!(
        "for process in /proc/[0-9]*; do\n  if grep -qs {} $process/cmdline; then kill -9 ${{process#/proc/}}; fi\ndone\nexit 0\n",
        patterns.join(" ")
    )
}
