//! `sim-exhaustive`: visits every state of one group within stated bounds.
use kv_sim::exhaustive::search::{Limits, search};
use kv_sim::exhaustive::step::Judged;
use kv_sim::exhaustive::{scope, trace};
use std::process::ExitCode;
use std::time::Duration;
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    std::panic::set_hook(Box::new(|_| {}));
    for s in scope::all() {
        if args.len() > 1 && !args[1].is_empty() && s.name != args[1] {
            continue;
        }
        let f = search(
            &s,
            Judged::Everything,
            Limits {
                depth: 99,
                states: 3_000_000,
                time: Duration::from_secs(args.get(2).map_or(20, |x| x.parse().unwrap())),
            },
            |_, _, _| {},
        );
        println!(
            "{:<20} {:?} states {} transitions {} depth {} replica {} brain {} {:?}",
            s.name,
            f.end,
            f.states,
            f.transitions,
            f.depth,
            f.replica_states,
            f.brain_states,
            f.time
        );
        if let Some((v, way)) = f.broken {
            println!("{v:?}");
            for l in trace::tell(&s, Judged::Everything, &way) {
                println!("{l}");
            }
        }
    }
    ExitCode::SUCCESS
}
