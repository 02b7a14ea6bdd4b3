//! Operations from a file or a pipe: many in flight, output in the order of the lines, no prompt.

use std::io::{self, IsTerminal};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::FileType;

use super::lines::{Lines, Next};
use super::output::Output;
use super::parse::{ParseError, parse};
use super::pipeline::Pipeline;

/// The maximum wait for a response before the input is polled again.
const INPUT_INTERVAL: Duration = Duration::from_millis(10);
/// The maximum wait for a response while the window is full or the input has ended.
const RESPONSE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs all lines of `input`. Returns whether all succeeded.
pub(super) fn run(
    pipeline: &mut Pipeline,
    input: OwnedFd,
    output: &mut Output,
) -> anyhow::Result<bool> {
    let bar = progress_bar(&input);
    if let Some(bar) = &bar {
        output.set_progress(bar.clone());
    }
    let ended = exchange(pipeline, Lines::new(input), output, bar.as_ref());
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    match ended {
        Ok(()) => Ok(!output.has_failed()),
        // The reader of the output has closed its end, so some results were not written.
        Err(error) if is_broken_pipe(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn exchange(
    pipeline: &mut Pipeline,
    mut lines: Lines,
    output: &mut Output,
    bar: Option<&ProgressBar>,
) -> anyhow::Result<()> {
    let mut is_at_end = false;
    loop {
        let mut is_starved = false;
        while pipeline.has_room() && !is_at_end && !is_starved && !pipeline.is_cut_off() {
            if pipeline.is_empty() {
                output.flush().context("writing the results")?;
            }
            match lines.next(pipeline.is_empty()).context("reading operations")? {
                Next::Line(number, line) => pipeline.push(number, Instant::now(), parse(&line)),
                Next::TooLong(number) => {
                    pipeline.push(number, Instant::now(), Err(ParseError::LineTooLong));
                }
                Next::NotYet => is_starved = true,
                Next::End => is_at_end = true,
            }
        }
        if let Some(bar) = bar {
            bar.set_position(lines.bytes_read());
        }
        if pipeline.is_empty() && (is_at_end || pipeline.is_cut_off()) {
            output.flush().context("writing the results")?;
            anyhow::ensure!(
                is_at_end,
                "no coordinator or server has sent the map, so the remaining lines were not tried; check -h and -p"
            );
            return Ok(());
        }
        let mut written = Ok(());
        let mut count = 0;
        let timeout = if is_starved { INPUT_INTERVAL } else { RESPONSE_INTERVAL };
        pipeline
            .turn(timeout, |response| {
                count += 1;
                if written.is_ok() {
                    written = output.give(&response);
                }
            })
            .context("waiting for responses")?;
        written.context("writing the results")?;
        let is_held_up = !is_starved && !is_at_end;
        if is_held_up && pipeline.is_out_of_touch() {
            is_at_end = pass_over(&mut lines, pipeline).context("reading operations")?;
        }
        if is_starved || count == 0 {
            output.flush().context("writing the results")?;
        }
    }
}

/// Drops the lines that can be read now, and reports them as not tried: they waited for room in the window until their
/// timeout had passed. The writer may still be writing, so lines that follow closely are dropped too, for up to one
/// more timeout. Returns whether the input has ended.
fn pass_over(lines: &mut Lines, pipeline: &mut Pipeline) -> io::Result<bool> {
    let start = Instant::now();
    let mut passed_over: Option<RangeInclusive<u64>> = None;
    let is_at_end = loop {
        if start.elapsed() >= pipeline.timeout() {
            break false;
        }
        let number = match lines.next(false)? {
            Next::Line(_, line) if parse(&line) == Ok(None) => continue,
            Next::Line(number, _) | Next::TooLong(number) => number,
            Next::NotYet if lines.is_readable(INPUT_INTERVAL)? => continue,
            Next::NotYet => break false,
            Next::End => break true,
        };
        let first = passed_over.map_or(number, |before| *before.start());
        passed_over = Some(first..=number);
    };
    if let Some(passed_over) = passed_over {
        pipeline.push_not_tried(passed_over);
    }
    Ok(is_at_end)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Creates a progress bar if standard error is a terminal, the input is a regular file, and standard output is not a
/// terminal. On a terminal, the output itself shows the progress.
fn progress_bar(input: &OwnedFd) -> Option<ProgressBar> {
    if !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return None;
    }
    let stat = rustix::fs::fstat(input).ok()?;
    let size = u64::try_from(stat.st_size).ok().filter(|&size| size > 0)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let style = ProgressStyle::with_template(
        "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
    )
    .expect("the template is well-formed");
    Some(ProgressBar::new(size).with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Act, Fake, key_of};
    use kv_client::{Client, Options};
    use kv_protocol::client_message::opcode;
    use kv_protocol::placement::Placement;
    use std::io::{Read, Seek, Write};
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    /// A writer that stores the written bytes.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn file(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    /// The default timeout of an operation in tests.
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Runs `input`. Returns whether all succeeded, standard output and standard error.
    fn run_on(fake: &Fake, input: OwnedFd, options: Options) -> (bool, String, String) {
        let timeout = options.deadline;
        let client = Client::open(&fake.endpoint(), options).unwrap();
        let (responses, errors) = (Kept::default(), Kept::default());
        let mut output = Output::new(Box::new(responses.clone()), Box::new(errors.clone()));
        let all = run(&mut Pipeline::new(client, timeout), input, &mut output).unwrap();
        (all, responses.text(), errors.text())
    }

    #[test]
    fn operations_on_one_key_keep_their_order_and_results_that_of_the_lines() {
        let fake = Fake::start(3, 2);
        // The response to every other request is delayed until the next request of the connection.
        let mut count = 0;
        fake.script(move |_| {
            count += 1;
            if count % 2 == 0 { Act::ResponseLater } else { Act::Serve }
        });
        let (mut input, mut expected) = (String::new(), String::new());
        for n in 0..300 {
            let key = n % 7;
            input.push_str(&format!("P \"{key}\" \"{n}\"\nG \"{key}\"\n"));
            expected
                .push_str(&format!("value[\"{key}\"] <- \"{n}\"\nvalue[\"{key}\"] == \"{n}\"\n"));
        }
        let options =
            Options { connect_timeout: std::time::Duration::from_secs(5), ..Options::default() };
        // A delayed response is sent only after a further request. The connections are cut repeatedly, so that no
        // response waits for ever.
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    (0..3).for_each(|server| fake.cut(server));
                    std::thread::park_timeout(std::time::Duration::from_millis(40));
                }
            });
            let (all, responses, errors) = run_on(&fake, file(&input), options);
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!((all, errors.as_str()), (true, ""));
            assert_eq!(responses, expected);
        });
        assert_eq!(fake.executed().len(), 300, "each put is done once");
    }

    #[test]
    fn a_scan_runs_after_the_earlier_lines_and_before_the_later_ones() {
        let fake = Fake::start(3, 2);
        let long = "x".repeat(70_000);
        let mut input = String::new();
        for n in 0..100 {
            input.push_str(&format!("P \"k{n:02}\" \"{n}\"\n"));
        }
        input.push_str(&format!("P \"a b\" \"{long}\"\ncount\nscan k*\nD \"k00\"\n"));
        input.push_str("scan k?0\nscan \"a *\" values\nscan limit 7\nscan none*\nG \"k01\"\n");
        let (all, responses, errors) = run_on(&fake, file(&input), Options::default());
        assert_eq!((all, errors.as_str()), (true, ""));
        let lines: Vec<&str> = responses.lines().skip(101).collect();
        assert_eq!(lines[0], "101 keys");
        let mut keys = lines[1..101].to_vec();
        keys.sort_unstable();
        assert_eq!(keys, (0..100).map(|n| format!("\"k{n:02}\"")).collect::<Vec<_>>());
        assert_eq!(lines[101], "key \"k00\" deleted");
        assert_eq!(lines[102..111].len(), 9);
        assert!(lines[102..111].iter().all(|line| line.ends_with("0\"")));
        assert_eq!(lines[111], format!("\"a b\" \"{long}\""));
        assert!(lines[112..119].iter().all(|line| line.starts_with('"')));
        assert_eq!(lines[119..], ["no key found", "value[\"k01\"] == \"1\""]);
    }

    #[test]
    fn a_scan_that_gets_no_response_fails_and_the_next_line_runs() {
        let fake = Fake::start(3, 1);
        fake.script(|seen| match seen.opcode {
            opcode::SCAN => Act::Ignore,
            _ => Act::Serve,
        });
        let options = Options { deadline: Duration::from_millis(200), ..Options::default() };
        let input = "P \"k\" \"1\"\nscan\nG \"k\"\n";
        let (all, responses, errors) = run_on(&fake, file(input), options);
        assert!(!all && errors.starts_with("line 2: scan \"\": no response"), "{errors}");
        assert_eq!(responses, "value[\"k\"] <- \"1\"\nvalue[\"k\"] == \"1\"\n");
    }

    #[test]
    fn every_kind_of_line_has_a_result_and_an_invalid_one_stops_nothing() {
        let fake = Fake::start(3, 1);
        let input = concat!(
            "P \"a\" \"1\"\n",
            "\n",
            "P \"a\"\n",
            "G \"a\"\n",
            "G \"b\"\n",
            "V \"a\" \"1\"\n",
            "V \"b\" \" \"\n",
            "V \"a\" \"2\"\n",
            "0 \"a\"\n",
            "D \"a\"\n",
            "Q \"a\"\n",
            "G \"a\"",
        );
        let (all, responses, errors) = run_on(&fake, file(input), Options::default());
        assert!(!all);
        let responded: Vec<&str> = responses.lines().collect();
        assert_eq!(
            responded,
            [
                "value[\"a\"] <- \"1\"",
                "value[\"a\"] == \"1\"",
                "key \"b\" not found",
                "check passed: value[\"a\"] == \"1\"",
                "check passed: key \"b\" not found",
                "check FAILED: key \"a\": expected \"2\", the primary has \"1\", the secondary has \"1\"",
                "server of key \"a\" responds",
                "key \"a\" deleted",
                "key \"a\" not found",
            ]
        );
        let errors: Vec<&str> = errors.lines().collect();
        assert_eq!(errors.len(), 2);
        assert!(errors[0].starts_with("line 3: the value is missing; write P"), "{errors:?}");
        assert!(errors[1].starts_with("line 11: unknown operation \"Q\""), "{errors:?}");
    }

    /// Returns `count` keys of the group of this one, in a ring of three servers.
    fn neighbours(of: &[u8], count: usize) -> Vec<String> {
        let place = |key: &[u8]| Placement::new(3, 1).locate(key);
        let keys = (0..).map(|n| format!("near-{n}"));
        keys.filter(|key| place(key.as_bytes()) == place(of)).take(count).collect()
    }

    #[test]
    fn every_word_has_its_result() {
        let fake = Fake::start(3, 1);
        let near = neighbours(b"k", 1);
        let near = &near[0];
        let script = [
            ("put k v if-absent", "value[\"k\"] <- \"v\""),
            ("put k w expires 60 old", "value[\"k\"] <- \"w\" (before: \"v\")"),
            ("get k", "value[\"k\"] == \"w\""),
            ("get k expires 90", "value[\"k\"] == \"w\" (expires in 90 s)"),
            ("expire k 60 if-earlier", "key \"k\" expires in 60 s"),
            ("persist k", "key \"k\" does not expire any more"),
            ("persist k", "key \"k\" has no deadline"),
            ("ttl k", "key \"k\" does not expire"),
            ("append k xyz", "length[\"k\"] == 4"),
            ("setrange k 1 XY", "length[\"k\"] == 4"),
            ("getrange k -3 2", "part[\"k\"] == \"XY\""),
            ("length k", "length[\"k\"] == 4"),
            ("exists k", "key \"k\" exists"),
            ("copy k NEAR", "key \"k\" copied to \"NEAR\""),
            ("take NEAR", "value[\"NEAR\"] == \"wXYz\" (deleted)"),
            ("rename k NEAR", "key \"k\" renamed to \"NEAR\""),
            ("incr k", "value[\"k\"] <- \"1\""),
            ("decr k 3", "value[\"k\"] <- \"-2\""),
            ("incrfloat k 0.5", "value[\"k\"] <- \"-1.5\""),
            ("mput a 1 b 2", "value[\"a\"] <- \"1\"\nvalue[\"b\"] <- \"2\""),
            ("mget b a", "value[\"b\"] == \"2\"\nvalue[\"a\"] == \"1\""),
            (
                "batch put k 5; incr k 2; del NEAR; incr NEAR optional; get k",
                "value[\"k\"] <- \"5\"\nvalue[\"k\"] <- \"7\"\nkey \"NEAR\" deleted\n\
                 value[\"NEAR\"] <- \"1\"\nvalue[\"k\"] == \"7\"",
            ),
            (
                "batch put k x; incr k optional",
                "value[\"k\"] <- \"x\"\nupdate of key \"k\" skipped: \
                 the value or the amount is not a number of this kind",
            ),
            // Keys that are not found do not end a batch, and do not fail the line.
            (
                "batch take NEAR; get NEAR; rename NEAR k; get k",
                "value[\"NEAR\"] == \"1\" (deleted)\nkey \"NEAR\" not found\n\
                 key \"NEAR\" not found\nvalue[\"k\"] == \"x\"",
            ),
            ("del k if-value x", "key \"k\" deleted"),
            ("del k if-absent", "key \"k\" not found"),
            ("put k v expires-at 5", "key \"k\" removed: its deadline 5 has passed"),
        ];
        let of = |part: fn(&(&str, &str)) -> String| {
            script.iter().map(|pair| part(pair).replace("NEAR", near) + "\n").collect::<String>()
        };
        let input = of(|(line, _)| (*line).to_owned());
        let (all, responses, errors) = run_on(&fake, file(&input), Options::default());
        let expected = of(|(_, expected)| (*expected).to_owned());
        assert_eq!((responses.as_str(), errors.as_str()), (expected.as_str(), ""));
        assert!(all);
    }

    #[test]
    fn words_that_fail_report_the_reason() {
        let fake = Fake::start(3, 1);
        let input = "put k v\nput k w if-absent old\nincr k\nbatch del k; incr a\nexists a\nttl a\n\
                     take a\nrename a k\nput a 1 if-version 9";
        let (all, responses, errors) = run_on(&fake, file(input), Options::default());
        assert!(!all);
        let responses: Vec<&str> = responses.lines().collect();
        assert_eq!(responses[0], "value[\"k\"] <- \"v\"");
        assert!(
            responses[1].starts_with("put \"k\": the condition does not hold"),
            "{responses:?}"
        );
        assert!(responses[1].ends_with("(its value is \"v\")"), "{responses:?}");
        let not_found = "key \"a\" not found";
        assert_eq!(responses[2..5], [not_found; 3]);
        assert!(responses.last().unwrap().contains("the key does not exist"), "{responses:?}");
        let errors: Vec<&str> = errors.lines().collect();
        assert!(errors[0].starts_with("line 3: add to \"k\": the value"), "{errors:?}");
        assert!(errors[1].starts_with("line 4: update \"k\": key \"k\" is in group"), "{errors:?}");
        assert!(errors[2].starts_with("line 8: rename \"a\": key \"a\" is in group"), "{errors:?}");
    }

    #[test]
    fn lines_with_several_keys_keep_the_order_of_each_key() {
        let fake = Fake::start(3, 1);
        let mut count = 0;
        // Many responses are delayed, so that lines that did not wait for each other would overtake.
        fake.script(move |_| {
            count += 1;
            if count % 3 == 0 { Act::ResponseLater } else { Act::Serve }
        });
        let keys = neighbours(&key_of(1), 3);
        let (mut input, mut expected) = (String::new(), String::new());
        for n in 0..100 {
            let (from, to) = (&keys[n % 3], &keys[(n + 1) % 3]);
            input += &format!("put {from} {n}\nrename {from} {to}\nget {to}\nget {from}\n");
            expected += &format!(
                "value[\"{from}\"] <- \"{n}\"\nkey \"{from}\" renamed to \"{to}\"\n\
                 value[\"{to}\"] == \"{n}\"\nkey \"{from}\" not found\n"
            );
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    (0..3).for_each(|server| fake.cut(server));
                    std::thread::park_timeout(Duration::from_millis(40));
                }
            });
            let (_, responses, errors) = run_on(&fake, file(&input), Options::default());
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!((responses, errors), (expected, String::new()));
        });
    }

    #[test]
    fn a_file_succeeds_only_if_no_line_failed() {
        for (line, succeeds) in [
            ("P \"k\" \"v\"", true),
            ("G \"k\"", false),
            ("D \"k\"", true),
            ("V \"k\" \"v\"", false),
            ("V \"k\" \" \"", true),
            ("V \"k\" absent", true),
            ("help", true),
            ("help put", true),
            ("exists \"k\"", false),
            ("take k", false),
            ("mget k", false),
            ("batch get k", false),
            ("batch get k; take k; put k v", true),
            ("batch put k v; check k if-absent", false),
            ("incrfloat k abc", false),
            ("del k", true),
            ("put k v if-present", false),
            ("put k v if-absent", true),
            ("", true),
            ("Q", false),
        ] {
            let fake = Fake::start(3, 1);
            let (all, _, _) = run_on(&fake, file(line), Options::default());
            assert_eq!(all, succeeds, "{line}");
        }
    }

    #[test]
    fn without_a_coordinator_a_long_file_ends_at_the_first_deadline() {
        let mut fake = Fake::start(3, 1);
        fake.kill_coordinator();
        let options = Options { deadline: Duration::from_millis(100), ..Options::default() };
        let input: String = (1..=100_000).map(|n| format!("G \"{n}\"\n")).collect();
        let (all, _, errors) = run_on(&fake, file(&input), options);
        assert!(!all);
        let errors: Vec<&str> = errors.lines().collect();
        let (others, tried) = errors.split_last().unwrap();
        for (n, error) in (1..).zip(tried) {
            assert!(error.starts_with(&format!("line {n}: get \"{n}\"")), "{error}");
        }
        let expected = format!("lines {} to 100000: not tried", tried.len() + 1);
        assert!(others.starts_with(&expected), "{others}");
    }

    #[test]
    fn waiting_lines_end_together_when_the_cluster_fails_and_sent_ones_are_not_called_not_tried() {
        let mut fake = Fake::start(3, 1);
        // The first 20 requests are served, and later ones get no response.
        let mut served = 0;
        fake.script(move |_| {
            served += 1;
            if served <= 20 { Act::Serve } else { Act::Ignore }
        });
        let deadline = Duration::from_millis(500);
        let client =
            Client::open(&fake.endpoint(), Options { deadline, ..Options::default() }).unwrap();
        let (responses, errors) = (Kept::default(), Kept::default());
        let (to, errors_to) = (responses.clone(), errors.clone());
        let begun = Instant::now();
        let ran = std::thread::spawn(move || {
            let input = file(&"P \"k\" \"v\"\n".repeat(200));
            let mut output = Output::new(Box::new(to), Box::new(errors_to));
            run(&mut Pipeline::new(client, deadline), input, &mut output).unwrap()
        });
        while fake.seen().len() < 21 {
            std::thread::yield_now();
        }
        fake.kill_coordinator();
        (0..3).for_each(|server| fake.kill(server));
        assert!(!ran.join().unwrap());
        // One after the other, the lines would take 90 s.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let (responses, errors) = (responses.text(), errors.text());
        assert_eq!(responses.lines().count(), 20);
        let errors: Vec<&str> = errors.lines().collect();
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert!(errors[0].starts_with("line 21: put \"k\": in doubt"), "{errors:?}");
        assert!(errors[1].starts_with("lines 22 to 200: not tried"), "{errors:?}");
        assert!(fake.seen().iter().all(|seen| seen.seq <= 21), "nothing of them was sent");
    }

    #[test]
    fn a_write_in_doubt_is_settled_and_its_line_reports_the_outcome() {
        let fake = Fake::start(3, 1);
        let [done, not_done, open] = [key_of(0), key_of(1), key_of(2)];
        let (done, not_done, open) = (text(done), text(not_done), text(open));
        let (is_done, is_open) = (done.clone().into_bytes(), open.clone().into_bytes());
        fake.script(move |seen| match seen.opcode {
            opcode::PUT if seen.key == is_done => Act::ResponseLater,
            opcode::RESOLVE if seen.key != is_open => Act::Serve,
            _ => Act::Ignore,
        });
        let put = |key: &str| format!("P \"{key}\" \"v\"\n");
        let input = put(&done) + &put(&not_done) + &put(&open);
        let options = Options { deadline: Duration::from_millis(400), ..Options::default() };
        let (all, responses, errors) = run_on(&fake, file(&input), options);
        assert!(!all);
        assert_eq!(responses, format!("value[\"{done}\"] <- \"v\"\n"));
        let errors: Vec<&str> = errors.lines().collect();
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert!(errors[0].contains("was not done, and never will be"), "{errors:?}");
        assert!(errors[1].contains("in doubt"), "{errors:?}");
        assert_eq!(fake.executed().len(), 1);
    }

    fn text(key: Vec<u8>) -> String {
        String::from_utf8(key).unwrap()
    }

    #[test]
    fn lines_that_arrive_after_the_cluster_has_recovered_are_tried() {
        let fake = Fake::start(3, 1);
        let answers_again = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_back = Arc::clone(&answers_again);
        fake.script(move |_| match is_back.load(std::sync::atomic::Ordering::SeqCst) {
            true => Act::Serve,
            false => Act::Ignore,
        });
        let (input, mut to_client) = io::pipe().unwrap();
        let (mut from_client, errors) = io::pipe().unwrap();
        let responses = Kept::default();
        let deadline = Duration::from_millis(500);
        let client =
            Client::open(&fake.endpoint(), Options { deadline, ..Options::default() }).unwrap();
        let to = responses.clone();
        std::thread::scope(|scope| {
            let ran = scope.spawn(move || {
                let mut output = Output::new(Box::new(to), Box::new(errors));
                run(&mut Pipeline::new(client, deadline), input.into(), &mut output).unwrap()
            });
            // The two lines have one key: the second line waits for the first, and both were read at the same time.
            to_client.write_all(b"G \"a\"\nG \"a\"\n").unwrap();
            let mut lines = Vec::new();
            while lines.iter().filter(|&&byte| byte == b'\n').count() < 2 {
                let mut byte = [0];
                from_client.read_exact(&mut byte).expect("an error for each line");
                lines.push(byte[0]);
            }
            let lines = String::from_utf8(lines).unwrap();
            assert!(
                lines.contains("line 1: get") && lines.contains("line 2: not tried"),
                "{lines}"
            );
            answers_again.store(true, std::sync::atomic::Ordering::SeqCst);
            to_client.write_all(b"P \"a\" \"1\"\n").unwrap();
            drop(to_client);
            assert!(!ran.join().unwrap());
        });
        assert_eq!(responses.text(), "value[\"a\"] <- \"1\"\n");
    }

    #[test]
    fn a_put_with_a_count_is_repeated() {
        let fake = Fake::start(3, 1);
        let (_, responses, _) = run_on(&fake, file("P \"k\" \"v\" 5"), Options::default());
        assert_eq!(responses, "value[\"k\"] <- \"v\"\n");
        assert_eq!(fake.executed().len(), 5);
    }

    #[test]
    fn a_writer_that_waits_gets_each_result_before_it_writes_the_next_line() {
        let fake = Fake::start(3, 1);
        let (input, mut to_client) = io::pipe().unwrap();
        let (mut from_client, responses) = io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let client = Client::open(&fake.endpoint(), Options::default()).unwrap();
                let mut output = Output::new(Box::new(responses), Box::new(io::sink()));
                let all =
                    run(&mut Pipeline::new(client, TIMEOUT), input.into(), &mut output).unwrap();
                assert!(all);
                drop(output);
            });
            for line in ["P \"a\" \"1\"\n", "G \"a\"\n", "D \"a\"\n"] {
                to_client.write_all(line.as_bytes()).unwrap();
                let mut byte = [0];
                while byte != *b"\n" {
                    from_client.read_exact(&mut byte).expect("a result for each line");
                }
            }
            drop(to_client);
        });
    }

    #[test]
    fn it_ends_silently_when_its_output_is_closed() {
        let fake = Fake::start(3, 1);
        let client = Client::open(&fake.endpoint(), Options::default()).unwrap();
        let (reader, responses) = io::pipe().unwrap();
        drop(reader);
        let errors = Kept::default();
        let mut output = Output::new(Box::new(responses), Box::new(errors.clone()));
        let input = file(&"P \"a\" \"1\"\n".repeat(10));
        let all = run(&mut Pipeline::new(client, TIMEOUT), input, &mut output).unwrap();
        assert!(!all);
        assert_eq!(errors.text(), "");
    }
}
