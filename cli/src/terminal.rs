//! Operations from a person: a prompt with line editing and history.
//!
//! Text that is pasted there is shown and can be edited, line ends included: nothing of it runs before Enter
//! (bracketed paste, where the terminal has it). Its lines then run one after the other.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use super::output::Output;
use super::parse::parse;
use super::pipeline::Pipeline;
use super::task::Answer;

const PROMPT: &str = "kv> ";
/// What ends the client like Ctrl+D. Only here: in a file it is more likely a mistake.
const LAST_WORDS: [&str; 3] = ["quit", "exit", "q"];
/// Lines that the history keeps.
const HISTORY_LINES: usize = 1_000;
/// How long one wait for the answer is; the operation's own deadline ends it.
const ANSWER_INTERVAL: Duration = Duration::from_millis(500);

/// Prompts until Ctrl+D or one of [`LAST_WORDS`].
pub(super) fn run(pipeline: &mut Pipeline, endpoint: &str) -> anyhow::Result<()> {
    println!(
        "Client of the cluster whose coordinator is at {endpoint}; help lists the operations, quit or Ctrl+D ends."
    );
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)
        .and_then(|builder| builder.history_ignore_dups(true))
        .context("setting up the history")?
        .bracketed_paste(true)
        .build();
    let mut editor = DefaultEditor::with_config(config).context("opening the terminal")?;
    let history = history_path();
    if let Some(path) = &history {
        // A history that cannot be read or written is no reason to refuse anything.
        let _ = editor.load_history(path);
    }
    let mut output = Output::terminal();
    loop {
        let entered = match editor.readline(PROMPT) {
            Ok(entered) => entered,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("reading from the terminal"),
        };
        for line in entered.lines() {
            let _ = editor.add_history_entry(line);
        }
        if let Some(path) = &history {
            let _ = editor.append_history(path);
        }
        if do_lines(pipeline, &entered, &mut output)?.is_break() {
            return Ok(());
        }
    }
}

/// Does the lines that were entered at once, each when the one before it has its answer. Breaks at one of
/// [`LAST_WORDS`].
fn do_lines(
    pipeline: &mut Pipeline,
    entered: &str,
    output: &mut Output,
) -> anyhow::Result<ControlFlow<()>> {
    let entered_at = Instant::now();
    // With a single line it is plain which one an error is about.
    output.set_numbers(entered.lines().count() > 1);
    for (number, line) in (1..).zip(entered.lines()) {
        if LAST_WORDS.contains(&line.trim()) {
            output.flush().context("writing the answer")?;
            return Ok(ControlFlow::Break(()));
        }
        let parsed = parse(line.as_bytes());
        let timeout = pipeline.timeout();
        if pipeline.is_out_of_touch() && entered_at.elapsed() >= timeout && parsed != Ok(None) {
            // It has waited as long as those that were tried.
            let answer = Answer::not_tried(number..=number, timeout);
            output.give(&answer).context("writing the answer")?;
            continue;
        }
        pipeline.push(number, entered_at, parsed);
        while !pipeline.is_empty() {
            let mut written: io::Result<()> = Ok(());
            pipeline
                .turn(ANSWER_INTERVAL, |answer| written = output.give(&answer))
                .context("waiting for an answer")?;
            written.and_then(|()| output.flush()).context("writing the answer")?;
        }
    }
    output.flush().context("writing the answer")?;
    Ok(ControlFlow::Continue(()))
}

/// Where the history is kept: `$XDG_STATE_HOME/kv/history`, or below `~/.local/state` as the XDG base
/// directory specification has it. `None` where there is no such directory and none can be made.
fn history_path() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    let directory = state.join("kv");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}
