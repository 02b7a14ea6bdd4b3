//! Checks that the examples for C and Python do what their comments say, against a real cluster.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::common::workshop::{Workshop, root};
use crate::common::{Cluster, TIMEOUT, programs};

#[track_caller]
fn compile(workshop: &Workshop, name: &str) -> std::path::PathBuf {
    workshop.compile_shared(&root().join("examples/c").join(name), &["-lpthread"])
}

#[test]
fn eight_threads_share_a_handle() {
    let (cluster, workshop) = (Cluster::builder().shards(2).start(), Workshop::open());
    let program = compile(&workshop, "threads.c");
    let ended = workshop.run(&program, &[&cluster.endpoint()]).with_code(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("800 of 800 keys\n", ""));
    assert!(cluster.stop().entries().is_empty());
}

#[test]
fn a_counter_that_four_programs_increment_at_once_is_exact() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "cas_counter.c");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| workshop.run(&program, &[&cluster.endpoint(), "50"]).with_code(0));
        }
    });
    let ended = workshop.run(&program, &[&cluster.endpoint(), "0"]).with_code(0);
    assert!(ended.stdout.starts_with("the counter is 200 now"), "{ended:?}");
}

#[test]
fn three_hundred_keys_take_two_calls() {
    let (cluster, workshop) = (Cluster::builder().shards(2).start(), Workshop::open());
    let program = compile(&workshop, "batch.c");
    let ended = workshop.run(&program, &[&cluster.endpoint()]).with_code(0);
    let lines = [
        "300 put",
        "300 got, 0 not found",
        "total price: 44850",
        "299 got, 1 not found",
        "total price: 44551",
    ];
    assert_eq!((ended.stdout, ended.stderr), (lines.join("\n") + "\n", String::new()));
    assert_eq!(cluster.stop().entries().len(), 299);
}

#[test]
fn an_event_loop_answers_every_line_even_if_more_arrive_than_its_queue_holds() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "async_epoll.c");
    let mut program = Command::new(&program)
        .arg(cluster.endpoint())
        .env("LD_LIBRARY_PATH", workshop.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the event loop");
    let mut input = program.stdin.take().expect("stdin is a pipe");
    let mut responses = BufReader::new(program.stdout.take().expect("stdout is a pipe")).lines();
    // All lines are sent at once, many more than the queue holds. The responses are sorted, because they arrive in any
    // order.
    let mut ask = |lines: Vec<String>| {
        writeln!(input, "{}", lines.join("\n")).expect("write lines");
        let responses = responses.by_ref().take(lines.len());
        let mut responses: Vec<String> = responses.map(|line| line.expect("a line")).collect();
        responses.sort();
        responses
    };
    let keys: Vec<String> = (100..600).map(|n| format!("key-{n}")).collect();
    let stored = ask(keys.iter().map(|key| format!("{key}=the value of {key}")).collect());
    let values: Vec<String> = keys.iter().map(|key| format!("{key}: the value of {key}")).collect();
    assert_eq!(stored, values);
    assert_eq!(ask(keys), values);
    let refused = ask(vec!["unknown".to_owned(), "=x".to_owned(), "k".repeat(300)]);
    assert_eq!(refused[0], "=x: KVC_INVALID");
    assert_eq!(refused[1], format!("{}: KVC_TOO_BIG", "k".repeat(300)));
    assert!(refused[2].starts_with("unknown: ") && refused[2].contains("not exist"), "{refused:?}");
    // The last line counts even without a line end.
    write!(input, "key-100").expect("write a line");
    drop(input);
    let last = responses.next().expect("a response").expect("a line");
    assert_eq!(last, "key-100: the value of key-100");
    assert_eq!(program.wait().expect("its end").code(), Some(0));
}

/// A session cache that is killed when its test ends.
struct Cache {
    program: Child,
    port: u16,
}

impl Cache {
    #[track_caller]
    fn start(workshop: &Workshop, program: &std::path::Path, endpoint: &str) -> Cache {
        let mut program = Command::new(program)
            .arg(endpoint)
            .env("LD_LIBRARY_PATH", workshop.dir())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the session cache");
        let mut line = String::new();
        let stdout = program.stdout.take().expect("stdout is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("read its first line");
        let port = line.trim().strip_prefix("listening on port ").map(str::parse);
        Cache { program, port: port.expect("a port").expect("a number") }
    }

    /// Sends these lines on a new connection and returns as many responses.
    #[track_caller]
    fn ask(&self, lines: &[&str]) -> Vec<String> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set a timeout");
        let mut responses = BufReader::new(&stream).lines();
        let mut ask = |line: &&str| {
            writeln!(&stream, "{line}").expect("write a line");
            responses.next().expect("a response").expect("a line")
        };
        lines.iter().map(&mut ask).collect()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn two_session_caches_share_sessions_and_survive_the_loss_of_a_server() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "session_cache.c");
    let [first, second] = [(), ()].map(|()| Cache::start(&workshop, &program, &cluster.endpoint()));
    let said = ["LOGIN 17 ada", "WHO 17", "LOGIN 17 eve", "WHO 18", "LOGOUT 18", "nonsense"];
    let unknown = "ERROR unknown command";
    assert_eq!(first.ask(&said), ["OK", "OK ada", "TAKEN", "NOBODY", "NOBODY", unknown]);
    assert_eq!(second.ask(&["WHO 17"]), ["OK ada"]);
    crate::common::process::signal(cluster.server_pid(0), crate::common::process::Signal::KILL);
    // The takeover may need more than half a second; then the cache responds ERROR.
    crate::common::wait_until("the session to be read again", TIMEOUT, || {
        let responses = second.ask(&["WHO 17"]);
        assert!(responses[0] == "OK ada" || responses[0].starts_with("ERROR "), "{responses:?}");
        responses[0] == "OK ada"
    });
    crate::common::wait_until("the session to be ended", TIMEOUT, || {
        !first.ask(&["LOGOUT 17"])[0].starts_with("ERROR ")
    });
    assert_eq!(second.ask(&["WHO 17"]), ["NOBODY"]);
}

#[test]
fn a_user_who_logs_in_again_after_a_login_in_doubt_gets_the_same_session() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "session_cache.c");
    let cache = Cache::start(&workshop, &program, &cluster.endpoint());
    // The first logins open the connections, so that the next login is sent to a server that does not respond.
    assert_eq!(cache.ask(&["LOGIN 17 ada", "LOGIN 17 ada"]), ["OK", "OK"]);
    let mut pids = cluster.server_pids();
    pids.push(cluster.coord_pid());
    pids.iter().for_each(|pid| crate::common::process::pause(*pid));
    let responses = cache.ask(&["LOGIN 18 eve"]);
    pids.iter()
        .for_each(|pid| crate::common::process::signal(*pid, crate::common::process::Signal::CONT));
    assert!(responses[0].starts_with("ERROR "), "{responses:?}");
    // The login succeeds as soon as the cluster responds again. It never gets TAKEN, the response
    // to bob.
    crate::common::wait_until("a response to the login", TIMEOUT, || {
        let responses = cache.ask(&["LOGIN 18 eve"]);
        assert!(responses[0] == "OK" || responses[0].starts_with("ERROR "), "{responses:?}");
        responses[0] == "OK"
    });
    assert_eq!(cache.ask(&["LOGIN 18 bob", "WHO 18"]), ["TAKEN", "OK eve"]);
}

#[test]
fn a_rate_limiter_counts_in_windows_that_end_by_themselves() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "rate_limiter.c");
    let run = |user, seconds| {
        workshop.run(&program, &[&cluster.endpoint(), user, "2", seconds]).with_code(0).stdout
    };
    assert_eq!(run("ada", "600"), "request 1 of 2: permitted\n");
    assert_eq!(run("ada", "600"), "request 2 of 2: permitted\n");
    let denied = run("ada", "600");
    assert!(denied.starts_with("request 3 of 2: denied until "), "{denied}");
    // The window does not move.
    let end = |said: &str| said.rsplit(' ').next().map(str::to_owned);
    assert_eq!(end(&run("ada", "600")), end(&denied));
    assert_eq!(run("bob", "1"), "request 1 of 2: permitted\n");
    crate::common::wait_until("a new window", TIMEOUT, || {
        run("bob", "1") == "request 1 of 2: permitted\n"
    });
    let long = "a".repeat(51);
    for words in [["bob", "2", "x"], ["bob", "x", "1"], ["bob", "2", "0"], ["bob", "2", "-1"]]
        .into_iter()
        .chain([[&long, "2", "1"], ["bob", "2", "99999999999999999999"]])
    {
        let endpoint = cluster.endpoint();
        let words = [&[endpoint.as_str()], &words[..]].concat();
        let ended = workshop.run(&program, &words).with_code(2);
        assert!(ended.stderr.starts_with("usage: "), "{words:?}: {ended:?}");
    }
}

#[test]
fn a_scan_lists_the_keys_of_a_prefix_page_by_page() {
    let (cluster, workshop) = (Cluster::builder().shards(2).start(), Workshop::open());
    let program = compile(&workshop, "scan.c");
    let endpoint = cluster.endpoint();
    let ended = workshop.run(&program, &[&endpoint, "fruit/"]).with_code(0);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines.pop(), Some("4 of 5 keys begin with fruit/"), "{ended:?}");
    lines.sort_unstable();
    let fruits =
        ["fruit/*: star", "fruit/apple: red", "fruit/banana: yellow", "fruit/cherry: black"];
    assert_eq!(lines, fruits);
    // The prefix has a special character of patterns.
    let ended = workshop.run(&program, &[&endpoint, "fruit/*"]).with_code(0);
    assert_eq!(ended.stdout, "fruit/*: star\n1 of 5 keys begin with fruit/*\n");
    workshop.run(&program, &[&endpoint, &"a".repeat(101)]).with_code(2);
}

#[test]
fn a_lock_has_one_owner_and_rejects_an_old_token() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "lock.c");
    let ended = workshop.run(&program, &[&cluster.endpoint()]).with_code(0);
    let lines = [
        "ada has the lock and uses the resource",
        "bob gets KVC_CONFLICT: the holder is ada",
        "ada releases it: KVC_OK",
        "bob gets KVC_OK, with a higher token",
        "bob uses the resource",
        "ada must not use the resource",
        "ada releases it again: KVC_CONFLICT",
    ];
    assert_eq!((ended.stdout, ended.stderr), (lines.join("\n") + "\n", String::new()));
    assert!(cluster.stop().entries().is_empty());
}

#[test]
fn a_leaderboard_that_four_programs_count_at_once_is_exact() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "leaderboard.c");
    let run = |points: &[&str]| {
        let endpoint = cluster.endpoint();
        let words = [&[endpoint.as_str()], points].concat();
        workshop.run(&program, &words).with_code(0).stdout
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| run(&["ada=1", "bob=2", "ada=3"]));
        }
    });
    assert_eq!(run(&["ada=0", "eve=9", "bob=0"]), "1. ada: 16\n2. eve: 9\n3. bob: 8\n");
    let long = "a".repeat(51) + "=1";
    for word in ["ada=x", "ada=", "ada=1x", "ada", "=1", "ada=99999999999999999999", &long] {
        // Nothing is added, not even the points of the other players.
        let endpoint = cluster.endpoint();
        let words = [&endpoint, "ada=1", word];
        let ended = workshop.run(&program, &words).with_code(2);
        assert!(ended.stderr.starts_with("usage: ") && ended.stdout.is_empty(), "{ended:?}");
    }
    assert_eq!(run(&["ada=0"]), "1. ada: 16\n");
}

#[test]
fn a_session_lives_while_it_is_used_and_ends_by_itself() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let program = compile(&workshop, "session_expiry.c");
    let ended = workshop.run(&program, &[&cluster.endpoint(), "3000"]).with_code(0);
    let uses = "session of ada\n".repeat(4);
    assert_eq!((ended.stdout, ended.stderr), (uses + "the session has ended\n", String::new()));
}

#[test]
fn python_stores_any_bytes_without_a_compiler() {
    let (cluster, workshop) = (Cluster::start(), Workshop::open());
    let library = format!("KVCLIENT={}", workshop.dir().join("libkvclient.so.1").display());
    let script = root().join("examples/python/kv.py").display().to_string();
    let words = [library.as_str(), "python3", &script, &cluster.endpoint()];
    let ended = programs::run("env", words, "", TIMEOUT).with_code(0);
    assert_eq!(ended.stdout, "stored on 2 servers\nread: b'any\\x00bytes'\ndeleted: None\n");
    let ended = programs::run("env", &words[..3], "", TIMEOUT).with_code(1);
    assert!(ended.stderr.contains("kv.py localhost:PORT"), "{ended:?}");
}

#[test]
fn each_example_is_short_enough_to_read_in_one_sitting() {
    for (dir, most) in [("examples/c", 120), ("examples/python", 60)] {
        for file in fs::read_dir(root().join(dir)).expect("the examples").flatten() {
            let lines = fs::read_to_string(file.path()).expect("a text").lines().count();
            assert!(lines < most, "{} has {lines} lines", file.path().display());
        }
    }
}
