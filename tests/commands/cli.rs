//! Tests of the command lines: the exact output, the streams and the exit codes.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::common::programs::{self, CLIENT, COORD, SERVER};
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_protocol::map::ServerState;
use kv_protocol::status::{ClusterState, GroupCondition};
use kv_testkit::silent::Silent;

#[test]
fn every_operation_prints_its_documented_output() {
    let cluster = Cluster::start();
    let operations = "\
        P \"a\" \"1\"\n\
        G \"a\"\n\
        V \"a\" \"1\"\n\
        0 \"a\"\n\
        D \"a\"\n\
        V \"a\" \" \"\n";
    let ended = cluster.client(operations).with_code(0);
    let lines = ended.lines();
    assert_eq!(lines.len(), 6, "{ended:#?}");
    assert_eq!(lines[0], "value[\"a\"] <- \"1\"");
    assert_eq!(lines[1], "value[\"a\"] == \"1\"");
    assert!(lines[2].starts_with("check passed"), "{}", lines[2]);
    assert!(lines[3].contains("\"a\""), "{}", lines[3]);
    assert!(lines[4].contains("\"a\""), "{}", lines[4]);
    assert!(lines[5].starts_with("check passed"), "{}", lines[5]);
    assert_eq!(ended.stderr, "", "standard error is not empty");
}

/// Starts a child that ends with its standard input. Returns it with its identity in the format of `server --watch`.
fn child_with_identity() -> (std::process::Child, String) {
    let child = std::process::Command::new("sh")
        .args(["-c", "read line"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("start sh");
    let process = identity(child.id());
    (child, process)
}

/// Returns the identity of a process in the format of `server --watch`.
#[track_caller]
fn identity(pid: u32) -> String {
    let named = programs::run(SERVER, ["--name", &pid.to_string()], "", TIMEOUT).with_code(0);
    let words: Vec<&str> = named.stdout.split_whitespace().collect();
    let ["started", named, start_time, namespace] = words[..] else { panic!("{words:?}") };
    assert_eq!(named, pid.to_string());
    format!("{pid}:{start_time}:{namespace}:0")
}

#[test]
fn a_watching_server_prints_nothing_until_the_process_has_ended() {
    let (mut child, process) = child_with_identity();
    let pid = child.id().to_string();
    let mut watcher = std::process::Command::new(SERVER)
        .args(["--watch", &process])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start a watcher");
    let line = format!("exited {pid} unknown\n");
    // This pid belongs to a process with another start time, so the requested process has ended.
    let (_, rest) = process.split_once(':').expect("a pid");
    let (_, rest) = rest.split_once(':').expect("a start time");
    let earlier = format!("{pid}:1:{rest}");
    let ended = programs::run(SERVER, ["--watch", &earlier], "", TIMEOUT).with_code(0);
    assert_eq!((ended.stdout, ended.stderr), (line.clone(), String::new()));
    assert!(watcher.try_wait().expect("wait").is_none(), "the child is still alive");
    drop(child.stdin.take());
    // The process is a zombie, because its parent has not waited for it. It counts as ended.
    assert_eq!(programs::wait(&mut watcher, TIMEOUT), Some(Some(0)));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut watcher.stdout.take().expect("a pipe"), &mut said)
        .expect("read a pipe");
    assert_eq!(said, line);
    child.wait().expect("wait for sh");
}

#[test]
fn a_process_that_cannot_be_identified_is_not_reported() {
    let (mut child, process) = child_with_identity();
    let pid = child.id();
    let parts: Vec<&str> = process.split(':').collect();
    let elsewhere = format!("{pid}:{}:1:0", parts[1]);
    let missing = format!("4000000:1:{}:0", parts[2]);
    for question in ["--watch", "--look", "--end"] {
        let ended = programs::run(SERVER, [question, &elsewhere], "", TIMEOUT).with_code(1);
        assert_eq!(ended.stdout, "", "{question}");
        assert!(ended.stderr.contains("PID namespace 1"), "{question}: {}", ended.stderr);
    }
    let looked = ["--look", &process, &missing, &elsewhere];
    let ended = programs::run(SERVER, looked, "", TIMEOUT).with_code(1);
    assert_eq!(ended.stdout, format!("lives {pid} {}\ngone 4000000 1\n", parts[1]));
    // The command line of the process does not name the server that is to be killed.
    let ended = programs::run(SERVER, ["--end", &process], "", TIMEOUT).with_code(1);
    assert_eq!(ended.stdout, "");
    assert_eq!(child.try_wait().expect("wait for sh"), None);
    drop(child.stdin.take());
    child.wait().expect("wait for sh");
}

#[test]
fn a_watcher_without_a_reader_ends() {
    let (mut child, process) = child_with_identity();
    let mut watcher = std::process::Command::new(SERVER)
        .args(["--watch", &process])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start a watcher");
    drop(watcher.stdout.take());
    assert_eq!(programs::wait(&mut watcher, TIMEOUT), Some(Some(1)));
    drop(child.stdin.take());
    child.wait().expect("wait for sh");
}

#[test]
fn a_key_that_is_not_found_and_a_check_that_fails_make_the_exit_status_one() {
    let cluster = Cluster::start();
    let ended = cluster.client("G \"nowhere\"\n").with_code(1);
    assert!(ended.stdout.contains("key \"nowhere\" not found"), "{ended:#?}");
    cluster.client("P \"k\" \"v\"\n").with_code(0);
    for wrong in ["V \"k\" \"other\"\n", "V \"k\" \" \"\n", "V \"nowhere\" \"v\"\n"] {
        let ended = cluster.client(wrong).with_code(1);
        assert!(ended.stdout.starts_with("check FAILED"), "{wrong}: {ended:#?}");
    }
}

#[test]
fn responses_are_printed_in_the_order_of_the_operations() {
    let cluster = Cluster::builder().shards(2).start();
    let mut operations = String::new();
    let mut expected = String::new();
    for n in 0..3_000 {
        let key = n % 50;
        operations.push_str(&format!("P \"key {key}\" \"{n}\"\nG \"key {key}\"\n"));
        expected.push_str(&format!("value[\"key {key}\"] <- \"{n}\"\n"));
        expected.push_str(&format!("value[\"key {key}\"] == \"{n}\"\n"));
    }
    let ended = cluster.client_file("operations.txt", &operations).with_code(0);
    assert!(ended.stdout == expected, "responses out of order or wrong");
    let piped = cluster.client(&operations).with_code(0);
    assert!(piped.stdout == expected, "responses out of order or wrong through a pipe");
}

#[test]
fn a_put_with_a_count_is_done_that_many_times() {
    let cluster = Cluster::start();
    let ended = cluster.client("P \"k\" \"v\" 100\nG \"k\"\n").with_code(0);
    assert_eq!(ended.lines().last(), Some(&"value[\"k\"] == \"v\""));
    let dumps = cluster.stop();
    // The version of an entry is the sequence number of its last write.
    assert_eq!(dumps.entries()[&b"k"[..]].sn.0, 100);
}

#[test]
fn any_byte_can_be_written_and_is_printed_in_a_form_that_can_be_typed_again() {
    let cluster = Cluster::start();
    let operations = r#"P "q\"b\\x\x00" "line\nfeed \xff é"
G "q\"b\\x\x00"
"#;
    let ended = cluster.client(operations).with_code(0);
    let shown = r#"value["q\"b\\x\x00"] == "line\x0afeed \xff é""#;
    assert_eq!(ended.lines()[1], shown);
    let dumps = cluster.stop();
    let entries = dumps.entries();
    let entry = entries[&b"q\"b\\x\x00"[..]];
    assert_eq!(
        entry.value,
        "line\nfeed ".bytes().chain([0xff]).chain(" é".bytes()).collect::<Vec<_>>()
    );
}

#[test]
fn a_bad_line_is_named_with_its_number_and_the_lines_after_it_are_done() {
    let cluster = Cluster::start();
    let bad = [
        "P \"a\"",
        "P \"a\" \"b",
        "X \"a\"",
        "G a",
        "G",
        "G \"a\" \"b\"",
        "G \"\"",
        "P \"a\" \"b\" many",
        "P \"a\" \"b\" 0",
        "G \"\\q\"",
        "\u{1}\u{2}",
    ];
    let mut operations = String::from("P \"first\" \"1\"\n");
    for line in bad {
        operations.push_str(line);
        operations.push('\n');
    }
    operations.push_str("# a comment\n\nG \"first\"\n");
    for ended in [cluster.client(&operations), cluster.client_file("bad.txt", &operations)] {
        let ended = ended.with_code(1);
        assert_eq!(ended.lines(), ["value[\"first\"] <- \"1\"", "value[\"first\"] == \"1\""]);
        for number in 2..2 + bad.len() {
            let named = ended.stderr.lines().filter(|l| names_line(l, number)).count();
            assert_eq!(named, 1, "line {number} ({:?}):\n{}", bad[number - 2], ended.stderr);
        }
        assert_eq!(ended.stderr.lines().count(), bad.len(), "{}", ended.stderr);
    }
}

fn names_line(message: &str, number: usize) -> bool {
    let words = format!("line {number}");
    message.find(&words).is_some_and(|at| {
        !message[at + words.len()..].starts_with(|next: char| next.is_ascii_digit())
    })
}

#[test]
fn help_names_every_operation() {
    let cluster = Cluster::start();
    let ended = cluster.client("help\n").with_code(0);
    for operation in ["P \"", "G \"", "D \"", "V \"", "0 \"", "help"] {
        assert!(ended.stdout.lines().any(|l| l.starts_with(operation)), "{}", ended.stdout);
    }
}

#[test]
fn empty_input_and_input_without_a_final_line_end_are_accepted() {
    let cluster = Cluster::start();
    let ended = cluster.client("P \"a\" \"1\"").with_code(0);
    assert_eq!(ended.stdout, "value[\"a\"] <- \"1\"\n");
    assert_eq!(cluster.client("").with_code(0).stdout, "");
}

#[test]
fn a_client_without_a_cluster_fails_at_its_deadline_and_names_the_address() {
    // No program listens on a port that was free a moment ago.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.local_addr().expect("an address").port().to_string()
    };
    let arguments = ["-h", "127.0.0.1", "-p", &port, "--timeout", "0.5"];
    let ended = programs::run(CLIENT, arguments, "G \"a\"\n", Duration::from_secs(5)).with_code(1);
    assert!(ended.stderr.contains("line 1") && ended.stderr.contains(&port), "{}", ended.stderr);
    assert_eq!(ended.stdout, "");
}

#[test]
fn invalid_usage_ends_every_program_with_status_two() {
    for (program, arguments) in [
        (COORD, &["--no-such-flag"][..]),
        (COORD, &["-C"]),
        (COORD, &[]),
        (COORD, &["status"]),
        (CLIENT, &["--no-such-flag"]),
        (CLIENT, &["-h", "127.0.0.1", "-p", "70000"]),
        (CLIENT, &["-h", "127.0.0.1", "-p", "1", "--timeout", "never"]),
        (SERVER, &["--no-such-flag"]),
        (SERVER, &["-h", "localhost", "-m", "1", "-S", "3", "-n", "3"]),
    ] {
        let ended = programs::run(program, arguments, "", TIMEOUT).with_code(2);
        assert_eq!(ended.stdout, "", "{program} {arguments:?}");
        assert!(!ended.stderr.is_empty(), "{program} {arguments:?}");
    }
}

#[test]
fn help_is_the_long_flag_of_every_program_and_goes_to_standard_output() {
    for program in [COORD, CLIENT, SERVER] {
        let ended = programs::run(program, ["--help"], "", TIMEOUT).with_code(0);
        assert!(ended.stdout.contains("Usage"), "{program}: {ended:#?}");
        let ended = programs::run(program, ["--version"], "", TIMEOUT).with_code(0);
        assert!(ended.stdout.contains(env!("CARGO_PKG_VERSION")), "{program}: {ended:#?}");
    }
}

#[test]
fn a_byte_order_mark_at_the_start_of_operations_is_skipped() {
    let cluster = Cluster::start();
    let operations = "\u{feff}P \"a\" \"1\"\r\nG \"a\"\r\n";
    for ended in [cluster.client(operations), cluster.client_file("marked.txt", operations)] {
        let ended = ended.with_code(0);
        assert_eq!(ended.lines(), ["value[\"a\"] <- \"1\"", "value[\"a\"] == \"1\""]);
    }
}

#[test]
fn a_minus_as_the_operations_file_is_standard_input() {
    let cluster = Cluster::start();
    let ended = cluster.client_with(&["-f", "-"], "P \"a\" \"1\"\n").with_code(0);
    assert_eq!(ended.stdout, "value[\"a\"] <- \"1\"\n");
}

#[test]
fn a_value_of_one_blank_is_distinguished_from_an_absent_key() {
    let cluster = Cluster::start();
    let blank = "P \"k\" \" \"\nV \"k\" \"\\x20\"\n";
    let ended = cluster.client(blank).with_code(0);
    assert_eq!(ended.lines()[1], "check passed: value[\"k\"] == \"\\x20\"");
    for absent in ["V \"k\" absent\n", "V \"k\" \" \"\n"] {
        let ended = cluster.client(absent).with_code(1);
        assert!(ended.stdout.starts_with("check FAILED"), "{absent}: {ended:#?}");
        let ended = cluster.client(&absent.replace('k', "nowhere")).with_code(0);
        assert!(ended.stdout.starts_with("check passed"), "{absent}: {ended:#?}");
    }
    let ended = cluster.client("V \"nowhere\" \"\\x20\"\n").with_code(1);
    assert!(ended.stdout.starts_with("check FAILED"), "{ended:#?}");
}

#[test]
fn a_write_with_one_copy_is_marked_until_there_are_two_again() {
    let builder = Cluster::builder();
    let binary = builder.dir().join("server");
    programs::copy_server(&binary);
    let cluster = builder.server_binary(binary.clone()).start();
    let key = String::from_utf8(cluster.key_at(1, 0, "k")).expect("text");
    let (put, delete) = (format!("P \"{key}\" \"1\"\n"), format!("D \"{key}\"\n"));
    let done = format!("value[\"{key}\"] <- \"1\"\n");
    assert_eq!(cluster.client(&put).with_code(0).stdout, done);
    // Server 2 cannot be replaced while its executable is away, so server 1 is the only holder of its group.
    let away = binary.with_extension("away");
    std::fs::rename(&binary, &away).expect("move the server away");
    process::signal(cluster.server_pid(2), process::Signal::KILL);
    wait_until("server 1 to be the sole holder of its group", TIMEOUT, || {
        cluster.status().groups[1].condition == GroupCondition::Degraded
    });
    let ended = cluster.client(&format!("{put}{delete}{put}")).with_code(0);
    let alone = format!("value[\"{key}\"] <- \"1\" (1 copy)");
    assert_eq!(ended.lines(), [&alone, &format!("key \"{key}\" deleted (1 copy)"), &alone]);
    std::fs::rename(&away, &binary).expect("bring the server back");
    cluster.await_whole();
    assert_eq!(cluster.client(&put).with_code(0).stdout, done);
}

#[test]
fn a_batch_ends_about_one_timeout_after_its_cluster_and_names_the_lines_not_tried() {
    let mut cluster = Cluster::start();
    let port = cluster.ready.clients_port.to_string();
    let mut client = std::process::Command::new(CLIENT)
        .args(["-h", "127.0.0.1", "-p", &port, "--timeout", "1", "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("start a client");
    let mut input = client.stdin.take().expect("a pipe");
    let mut responses = std::io::BufReader::new(client.stdout.take().expect("a pipe"));
    input.write_all(b"P \"k\" \"0\"\n").expect("write to the client");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut responses, &mut line).expect("read a response");
    assert_eq!(line, "value[\"k\"] <- \"0\"\n");
    cluster.kill_coordinator();
    process::end_all_in(cluster.dir());
    let gone = Instant::now();
    // One after the other, the lines would take more than three minutes.
    input.write_all("P \"k\" \"1\"\n".repeat(200).as_bytes()).expect("write to the client");
    drop(input);
    assert_eq!(programs::wait(&mut client, Duration::from_secs(20)), Some(Some(1)));
    println!("the batch ended {:?} after its cluster", gone.elapsed());
    let (mut more, mut errors) = (String::new(), String::new());
    std::io::Read::read_to_string(&mut responses, &mut more).expect("read a pipe");
    assert_eq!(more, "");
    let mut stderr = client.stderr.take().expect("a pipe");
    std::io::Read::read_to_string(&mut stderr, &mut errors).expect("read a pipe");
    let errors: Vec<&str> = errors.lines().collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].starts_with("line 2: put \"k\""), "{errors:?}");
    assert!(errors[1].starts_with("lines 3 to 201: not tried"), "{errors:?}");
}

#[test]
fn the_first_of_several_addresses_that_responds_is_used() {
    let (cluster, silent) = (Cluster::start(), Silent::all_kinds());
    let port = cluster.ready.clients_port.to_string();
    let dead: Vec<String> = silent.iter().map(Silent::endpoint).collect();
    let one_by_one: Vec<&str> = dead.iter().flat_map(|address| ["-h", address]).collect();
    let list = format!("{},127.0.0.1", dead.join(","));
    let separate = [&one_by_one[..], &["-h", "127.0.0.1", "-p", &port]].concat();
    for arguments in [&separate[..], &["-h", &list, "-p", &port]] {
        let begun = Instant::now();
        let ended = programs::run(CLIENT, arguments, "P \"a\" \"1\"\n", TIMEOUT).with_code(0);
        assert_eq!(ended.stdout, "value[\"a\"] <- \"1\"\n");
        println!("with unresponsive addresses first it took {:?}", begun.elapsed());
    }
}

#[test]
fn the_status_and_the_client_accept_an_ipv6_address_with_and_without_brackets() {
    let cluster = Cluster::builder().flag("--bind").flag("::1").start();
    let port = cluster.ready.clients_port.to_string();
    for host in ["[::1]", "::1"] {
        let arguments = ["status", "-h", host, "-p", &port];
        let status = programs::run(COORD, arguments, "", TIMEOUT).with_code(0).stdout;
        assert!(status.contains(&cluster.ready.cluster), "{host}: {status}");
        let put = "P \"a\" \"1\"\n";
        programs::run(CLIENT, ["-h", host, "-p", &port], put, TIMEOUT).with_code(0);
    }
}

#[test]
fn a_missing_operations_file_is_named() {
    let cluster = Cluster::start();
    let ended = cluster.client_with(&["-f", "/nowhere/at/all.txt"], "");
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:#?}");
    assert!(ended.stderr.contains("/nowhere/at/all.txt"), "{}", ended.stderr);
}

#[test]
fn the_status_shows_servers_groups_copies_entries_and_memory() {
    let cluster = Cluster::builder().shards(2).start();
    let operations: String = (0..300).map(|n| format!("P \"{n}\" \"v\"\n")).collect();
    cluster.client(&operations).with_code(0);
    wait_until("the entries to be reported", TIMEOUT, || {
        let status = cluster.status();
        status.groups.iter().map(|group| group.entries).sum::<u64>() == 300
            && status.servers.iter().map(|server| server.secondary_entries).sum::<u64>() == 300
    });
    let status = cluster.status();
    assert_eq!(status.cluster.to_string(), cluster.ready.cluster);
    assert_eq!((status.state, status.shards), (ClusterState::Serving, 2));
    for (id, server) in status.servers.iter().enumerate() {
        assert_eq!((usize::from(server.id.0), server.state), (id, ServerState::Up));
        assert_eq!(server.host, "localhost");
        assert!(process::is_alive(server.pid.expect("a pid")));
        assert!(server.primary_entries > 0 && server.table_bytes > 0 && server.resident_bytes > 0);
        assert!(server.requests > 0 && server.heartbeat_age_ms.expect("heartbeats") < 10_000);
    }
    for (id, group) in status.groups.iter().enumerate() {
        assert_eq!(usize::from(group.primary.expect("a primary").server.0), id);
        assert_eq!(usize::from(group.secondary.expect("a secondary").server.0), (id + 1) % 3);
        assert_eq!((group.view.0, group.copies), (1, 2));
    }
    let port = cluster.ready.clients_port.to_string();
    let arguments = ["status", "-h", "127.0.0.1", "-p", &port];
    let people = programs::run(COORD, arguments, "", TIMEOUT).with_code(0).stdout;
    for word in ["serving", "localhost", "300", &cluster.ready.cluster] {
        let is_sum = word == "300";
        assert!(is_sum || people.contains(word), "no {word:?} in\n{people}");
    }
}

#[test]
fn the_status_of_an_unreachable_cluster_fails_and_names_the_address() {
    let arguments = ["status", "-h", "127.0.0.1", "-p", "1"];
    let ended = programs::run(COORD, arguments, "", TIMEOUT).with_code(1);
    assert!(ended.stderr.contains("127.0.0.1"), "{}", ended.stderr);
    assert!(ended.stderr.contains("port 1:"), "{}", ended.stderr);
}

#[test]
fn a_check_prints_its_findings_and_starts_nothing() {
    let builder = Cluster::builder().flag("--check");
    let command = builder.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let ended = programs::run(COORD, arguments, "", TIMEOUT).with_code(0);
    assert!(!ended.stdout.is_empty() || !ended.stderr.is_empty(), "{ended:#?}");
    assert!(process::running_in(builder.dir()).is_empty());

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = taken.local_addr().expect("an address").port().to_string();
    let text = format!("3\nlocalhost 0 0 0\nlocalhost 0 {port} 0\nlocalhost 0 0 0\n");
    let builder = Cluster::builder().flag("--check").cluster_file(text);
    let command = builder.command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let ended = programs::run(COORD, arguments, "", TIMEOUT).with_code(1);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains(&format!("server 1, port {port}")) && said.contains("in use"), "{said}");
}

#[test]
fn a_check_of_the_file_alone_looks_at_nothing_else() {
    // The hosts do not exist, and no port is opened, because the check needs only a valid file.
    for (text, code, named) in [
        (
            "3\nkv@nowhere.invalid 0 0 0\nkv@nowhere.invalid 1 2 3\nkv@nowhere.invalid 0 0 0\n",
            0,
            "",
        ),
        ("\u{feff}3\nlocalhost 0 0 0\nlocalhost 0 0 0\nlocalhost 0 0 0\n", 0, ""),
        ("3\nlocalhost 0 0 0\nlocalhost 0 x 0\nlocalhost 0 0 0\n", 2, "line 3"),
        ("3\nlocalhost 0 0 0\nkv@nowhere.invalid 0 0 0\nlocalhost 0 0 0\n", 2, "--advertise"),
    ] {
        let builder = Cluster::builder().flag("--check-file").cluster_file(text);
        let command = builder.command();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let ended = programs::run(COORD, arguments, "", TIMEOUT).with_code(code);
        assert!(ended.stderr.contains(named), "{}", ended.stderr);
        assert!(!builder.dir().join("coord.log").exists(), "the check has written a log");
    }
}

#[test]
fn the_end_of_standard_input_stops_the_cluster_cleanly() {
    let mut cluster = Cluster::builder().in_foreground().start();
    cluster.client("P \"k\" \"v\"\n").with_code(0);
    let pids = cluster.server_pids();
    let mut input = cluster.take_input();
    // Only the end of input ends the coordinator, not the input itself.
    input.write_all(b"some input\n").expect("write to coord");
    cluster.assert_serves(&pids);
    drop(input);
    cluster.await_end(0);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries()[&b"k"[..]].value, b"v");
}

#[test]
fn an_interrupt_stops_the_cluster_cleanly() {
    let mut cluster = Cluster::builder().in_foreground().start();
    process::signal(cluster.coord_pid(), process::Signal::INT);
    cluster.await_end(0);
    cluster.dumps().assert_copies_agree();
}

#[test]
fn an_interrupt_a_second_after_the_first_does_not_wait_for_a_hung_server() {
    let mut cluster = Cluster::builder().in_foreground().start();
    let hung = cluster.server_pid(1);
    process::pause(hung);
    let start = Instant::now();
    wait_until("the end of coord", TIMEOUT, || {
        process::signal(cluster.coord_pid(), process::Signal::INT);
        !process::is_alive(cluster.coord_pid())
    });
    // A signal within the first second counts as the same press of Ctrl+C.
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // After a single signal, the stop would wait up to five seconds for each order.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    cluster.await_any_end();
}

#[test]
fn interrupts_in_quick_succession_stop_the_cluster_cleanly_like_one() {
    let mut cluster = Cluster::builder().in_foreground().start();
    cluster.client("P \"k\" \"v\"\n").with_code(0);
    for signal in [process::Signal::INT, process::Signal::INT, process::Signal::TERM] {
        process::signal(cluster.coord_pid(), signal);
    }
    cluster.await_end(0);
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries()[&b"k"[..]].value, b"v");
}

#[test]
fn a_daemon_ignores_the_end_of_standard_input() {
    // The fixture's coordinators are daemons whose standard input has ended before they start.
    let cluster = Cluster::start();
    let pids = cluster.server_pids();
    cluster.assert_serves(&pids);
    cluster.stop();
}

#[test]
fn an_interrupt_during_the_start_leaves_no_process() {
    let mut cluster = Cluster::builder().in_foreground().launch();
    let dir = cluster.dir().to_owned();
    wait_until("the first server", TIMEOUT, || !process::running_in(&dir).is_empty());
    process::signal(cluster.coord_pid(), process::Signal::INT);
    cluster.await_any_end();
}
