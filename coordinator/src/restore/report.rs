//! The report before a restored cluster starts: the use of each dump, the source of each group, and what is
//! missing.

use comfy_table::Table;
use kv_core::cluster::DurableState;
use kv_core::dump::DumpHeader;
use kv_core::restore::{Plan, Verdict};
use kv_protocol::{GroupId, Member, ShardId};

use super::gather::Found;
use crate::units::bytes;

/// Creates a table without borders, because a narrow terminal would wrap them.
fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table
}

/// Returns a table with a row for each file. `verdicts` has the use of each intact dump, in the order of `found`.
pub(super) fn dumps(found: &[Found], verdicts: &[Verdict]) -> String {
    let mut table = table(&["dump", "size", "group", "written by", "use"]);
    let mut verdicts = verdicts.iter();
    for file in found {
        let (group, writer, fate) = match &file.dump {
            Err(reason) => ("-".to_owned(), "-".to_owned(), format!("broken: {reason}")),
            Ok(header) => {
                let fate = match verdicts.next() {
                    Some(Verdict::Used) => "used".to_owned(),
                    Some(Verdict::Surpassed) => "not needed: another dump is as new".to_owned(),
                    Some(Verdict::Refused(refusal)) => format!("rejected: {refusal}"),
                    None => "-".to_owned(),
                };
                let origin = &header.origin;
                (origin.group.to_string(), format!("server {}", origin.writer), fate)
            }
        };
        table.add_row([file.path.display().to_string(), bytes(file.bytes), group, writer, fate]);
    }
    table.to_string()
}

/// Returns a table with a row for each group.
pub(super) fn groups(good: &[&Found], plan: &Plan) -> String {
    let mut table = table(&["group", "comes from"]);
    for group in &plan.groups {
        let from = match &group.sources {
            None => "LOST".to_owned(),
            Some(sources) => {
                let first = sources.first().map(|source| source.dump);
                let name = |at: usize| good[at].path.display().to_string();
                match first.filter(|first| sources.iter().all(|source| source.dump == *first)) {
                    Some(first) => name(first.0),
                    None => {
                        let shards = sources.iter().zip(0..);
                        let shards = shards
                            .map(|(source, n)| format!("{}: {}", ShardId(n), name(source.dump.0)));
                        shards.collect::<Vec<_>>().join(", ")
                    }
                }
            }
        };
        table.add_row([group.group.to_string(), from]);
    }
    table.to_string()
}

/// Returns a line for each replica without a complete dump, and for each group without replicas.
pub(super) fn missing(state: &DurableState, headers: &[DumpHeader]) -> Vec<String> {
    let mut lines = Vec::new();
    for view in &state.views {
        let group = view.group;
        let holders = [(view.primary, "primary"), (view.secondary(), "secondary")];
        if holders.iter().all(|(holder, _)| holder.is_none()) {
            lines.push(format!("group {group} had no holder when the cluster stopped"));
        }
        for (holder, was) in holders.into_iter().filter_map(|(holder, was)| Some((holder?, was))) {
            let is_its =
                |dump: &&DumpHeader| dump.origin.writer == holder && dump.origin.group == group;
            if !headers.iter().any(|dump| is_its(&dump) && !dump.shards.is_empty()) {
                let file = file_name(holder, group);
                lines.push(format!(
                    "missing: {file} of server {holder}, which was {was} of group {group}"
                ));
            }
        }
    }
    lines
}

/// Returns the name of a server's dump of a group, which depends on whether the group is its home group.
fn file_name(writer: Member, group: GroupId) -> String {
    let role = if writer.server.home_group() == group { "primary" } else { "secondary" };
    format!("server_{}.{role}", writer.server)
}
