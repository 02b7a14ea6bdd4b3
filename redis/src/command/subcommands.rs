//! The functions that all commands with subcommands share.

use super::{Context, find};
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// Performs a call that none of the subcommands takes.
pub(super) fn none(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let name = String::from_utf8_lossy(context.args[0]).to_ascii_lowercase();
    match context.args.get(1) {
        Some(subcommand) => Err(error::subcommand(&name, subcommand)),
        None => Err(error::arity(&name)),
    }
}

/// Performs HELP: replies with the subcommands and their purposes.
pub(super) fn help(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let Some(command) = find(context.args[0]) else { return none(context, reply) };
    let name = command.name.to_ascii_uppercase();
    reply.array(1 + 2 * command.subcommands.len());
    reply.simple(&format!("{name} <subcommand> [<argument> ...]. Subcommands are:"));
    for subcommand in command.subcommands {
        reply.simple(&subcommand.own_name().to_ascii_uppercase());
        reply.simple(&format!("    {}", subcommand.summary));
    }
    Ok(Plan::Replied)
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn help_names_all_subcommands() {
        let reply = Door::new().say("object help");
        assert!(reply.starts_with("*11 +OBJECT <subcommand>"), "{reply}");
        for name in ["ENCODING", "FREQ", "IDLETIME", "REFCOUNT", "HELP"] {
            assert!(reply.contains(&format!("+{name} ")), "{reply}");
        }
    }
}
