//! The servers that lost their place in a group, according to the views in the coordinator's log.

use std::collections::{BTreeMap, BTreeSet};

/// Returns the servers that a view omits although the previous view of the group named them as primary or secondary. At
/// the beginning of `text`, every group must be at home.
pub(crate) fn lost(text: &str, servers: u16) -> BTreeSet<u16> {
    let home = |group: u16| BTreeSet::from([group, (group + 1) % servers]);
    let mut replicas: BTreeMap<u16, BTreeSet<u16>> =
        (0..servers).map(|group| (group, home(group))).collect();
    let mut lost = BTreeSet::new();
    for (group, now) in text.lines().filter_map(parse) {
        if let Some(before) = replicas.insert(group, now.clone()) {
            lost.extend(before.difference(&now));
        }
    }
    lost
}

/// Parses `… group 1: view 3 -> 4: server 2 alone`, `… with secondary 0`, `… copying to 0` or `… LOST` into the group
/// and its primary and secondary. A candidate is not included.
fn parse(line: &str) -> Option<(u16, BTreeSet<u16>)> {
    let (_, said) = line.split_once("group ")?;
    let (group, said) = said.split_once(": view ")?;
    let (_, said) = said.split_once(": ")?;
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        text[..digits].parse::<u16>().ok()
    };
    let primary = said.strip_prefix("server ").and_then(number);
    let secondary = said.split_once("with secondary ").and_then(|(_, rest)| number(rest));
    Some((group.parse().ok()?, primary.into_iter().chain(secondary).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_a_view_omits_have_lost_a_place() {
        let recovery = "2026-11-25T18:00:00Z  INFO group 1: view 1 -> 2: server 2 alone\n\
            INFO group 1: view 2 -> 3: server 2 copying to 1\n\
            INFO server 1 is back\n\
            INFO group 1: view 3 -> 4: server 2 with secondary 1\n\
            INFO group 1: view 4 -> 5: server 1 with secondary 2, by hand-over\n";
        assert_eq!(lost(recovery, 3), BTreeSet::from([1]));
        let other = "INFO group 0: view 1 -> 2: server 0 alone\n";
        assert_eq!(lost(&format!("{recovery}{other}"), 3), BTreeSet::from([1]));
        assert_eq!(lost(&format!("{recovery}{other}"), 3).len(), 1);
        let partner = "INFO group 1: view 5 -> 6: server 1 alone\n";
        assert_eq!(lost(&format!("{recovery}{partner}"), 3), BTreeSet::from([1, 2]));
        assert_eq!(
            lost("INFO group 2: view 1 -> 2: no primary alone\n", 3),
            BTreeSet::from([0, 2])
        );
        assert_eq!(lost("", 3), BTreeSet::new());
    }
}
