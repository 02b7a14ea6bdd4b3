//! The interactive prompt, with line editing, completion of words, and history.
//!
//! If the terminal supports bracketed paste, pasted text can be edited, line ends included. It runs line by line when
//! Enter is pressed.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{CompletionType, Config, Editor};

use super::completion::Words;
use super::output::Output;
use super::parse::parse;
use super::pipeline::Pipeline;
use super::task::Response;

const PROMPT: &str = "kv> ";
/// Words that end the prompt, like Ctrl+D. In a file, they are unknown operations.
const LAST_WORDS: [&str; 3] = ["quit", "exit", "q"];
/// The number of lines in the history.
const HISTORY_LINES: usize = 1_000;
/// The maximum length of one wait for a response. The operation ends at its deadline.
const RESPONSE_INTERVAL: Duration = Duration::from_millis(500);

/// Prompts until Ctrl+D or one of [`LAST_WORDS`].
pub(super) fn run(pipeline: &mut Pipeline, endpoint: &str) -> anyhow::Result<()> {
    println!("Coordinator: {endpoint}. Type help for the operations, quit or Ctrl+D to exit.");
    let config = Config::builder()
        .max_history_size(HISTORY_LINES)
        .and_then(|builder| builder.history_ignore_dups(true))
        .context("setting up the history")?
        .bracketed_paste(true)
        .completion_type(CompletionType::List)
        .build();
    let mut editor =
        Editor::<Words, DefaultHistory>::with_config(config).context("opening the terminal")?;
    editor.set_helper(Some(Words));
    let history = history_path();
    if let Some(path) = &history {
        // The prompt works without a history.
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

/// Runs the lines of one input in sequence. Breaks at one of [`LAST_WORDS`].
fn do_lines(
    pipeline: &mut Pipeline,
    entered: &str,
    output: &mut Output,
) -> anyhow::Result<ControlFlow<()>> {
    let entered_at = Instant::now();
    // A single line needs no number in its error.
    output.set_numbers(entered.lines().count() > 1);
    for (number, line) in (1..).zip(entered.lines()) {
        if LAST_WORDS.contains(&line.trim()) {
            output.flush().context("writing the result")?;
            return Ok(ControlFlow::Break(()));
        }
        let parsed = parse(line.as_bytes());
        let timeout = pipeline.timeout();
        if pipeline.is_out_of_touch() && entered_at.elapsed() >= timeout && parsed != Ok(None) {
            // The line has waited for the whole timeout, so it fails without being sent.
            let response = Response::not_tried(number..=number, timeout);
            output.give(&response).context("writing the result")?;
            continue;
        }
        pipeline.push(number, entered_at, parsed);
        while !pipeline.is_empty() {
            let mut written: io::Result<()> = Ok(());
            pipeline
                .turn(RESPONSE_INTERVAL, |response| written = output.give(&response))
                .context("waiting for a response")?;
            written.and_then(|()| output.flush()).context("writing the result")?;
        }
    }
    output.flush().context("writing the result")?;
    Ok(ControlFlow::Continue(()))
}

/// Returns the path of the history: `$XDG_STATE_HOME/kv/history`, or `~/.local/state/kv/history` (XDG base directory
/// specification). Creates its directory. Returns `None` if that fails, or neither variable is an absolute path.
fn history_path() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    let directory = state.join("kv");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}
