//! CLIENT: the connections of clients. A connection knows only itself.

use super::{Command, Context, Keys, Perform, integer, subcommands};
use crate::client::Replies;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::{Reply, Version};

/// The command.
pub(super) const COMMANDS: &[Command] = &[Command {
    flags: &[],
    subcommands: CLIENT,
    ..of("client", -2, PLAIN, "2.4.0", "Shows and changes the connection.", subcommands::none)
}];

const CLIENT: &[Command] = &[
    of("client|getname", 2, PLAIN, "2.6.9", "Returns the name of the connection.", getname),
    of("client|id", 2, PLAIN, "5.0.0", "Returns the number of the connection.", id),
    of("client|info", 2, PLAIN, "6.2.0", "Describes the connection.", info),
    of("client|kill", -3, ADMIN, "2.4.0", "Closes this connection if it is meant.", kill),
    of("client|list", -2, ADMIN, "2.4.0", "Describes this connection if it is meant.", list),
    of("client|no-evict", 3, ADMIN, "7.0.0", "Is accepted and shown.", no_evict),
    of("client|no-touch", 3, PLAIN, "7.2.0", "Is accepted and shown.", no_touch),
    of("client|reply", 3, PLAIN, "3.2.0", "Determines which replies are sent.", reply_mode),
    of("client|setinfo", 4, PLAIN, "7.2.0", "Names the library of the client.", setinfo),
    of("client|setname", 3, PLAIN, "2.6.9", "Names the connection.", setname),
    of("client|unpause", 2, ADMIN, "6.2.0", "Does nothing: no client is paused.", unpause),
    of(
        "client|help",
        2,
        &["loading", "stale"],
        "5.0.0",
        "Lists the subcommands.",
        subcommands::help,
    ),
];

const PLAIN: &[&str] = &["noscript", "loading", "stale"];
const ADMIN: &[&str] = &["admin", "noscript", "loading", "stale"];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::NONE, "connection");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

/// The maximum length of a name.
const NAME_BYTES_MAX: usize = 1_024;

/// Returns whether a text has only printable characters, and no spaces.
fn is_printable(text: &[u8]) -> bool {
    text.len() <= NAME_BYTES_MAX && text.iter().all(u8::is_ascii_graphic)
}

/// Checks the name of a connection.
pub(super) fn check_name(name: &[u8]) -> Result<(), Error> {
    match is_printable(name) {
        true => Ok(()),
        false => Err(Error::Stated(
            "ERR Client names cannot contain spaces, newlines or special characters.",
        )),
    }
}

fn ok(reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.ok();
    Ok(Plan::Replied)
}

fn getname(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.bulk_or_null(Some(&context.client.name[..]).filter(|name| !name.is_empty()));
    Ok(Plan::Replied)
}

fn setname(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    check_name(context.args[2])?;
    context.client.name = context.args[2].to_vec();
    ok(reply)
}

fn setinfo(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let (option, value) = (error::shown(context.args[2]), context.args[3]);
    let (name, version) = &mut context.client.library;
    let field = match option.to_ascii_lowercase().as_str() {
        "lib-name" => name,
        "lib-ver" => version,
        _ => return Err(Error::Text(format!("ERR Unrecognized option '{option}'"))),
    };
    if !is_printable(value) {
        let reason = "cannot contain spaces, newlines or special characters.";
        return Err(Error::Text(format!("ERR {option} {reason}")));
    }
    *field = value.to_vec();
    ok(reply)
}

fn id(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.integer(i64::try_from(context.client.id).unwrap_or(i64::MAX));
    Ok(Plan::Replied)
}

fn info(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    reply.verbatim(&line(context, "client|info"));
    Ok(Plan::Replied)
}

fn list(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let is_shown = match context.args.len() {
        2 => true,
        4 if context.is(2, "type") => is_type(context.args[3])?,
        count if count > 3 && context.is(2, "id") => {
            let ids = context.args[3..].iter().map(|text| integer(text));
            let ids: Option<Vec<i64>> = ids.collect();
            let ids = ids.ok_or(Error::Stated("ERR Invalid client ID"))?;
            ids.iter().any(|id| u64::try_from(*id) == Ok(context.client.id))
        }
        _ => return Err(error::SYNTAX),
    };
    let line = if is_shown { line(context, "client|list") } else { String::new() };
    reply.verbatim(&line);
    Ok(Plan::Replied)
}

/// Returns whether the type of this connection, normal, is this one.
fn is_type(name: &[u8]) -> Result<bool, Error> {
    match name.to_ascii_lowercase().as_slice() {
        b"normal" => Ok(true),
        b"slave" | b"replica" | b"pubsub" | b"master" => Ok(false),
        _ => {
            let name = error::shown(name);
            Err(Error::Text(format!("ERR Unknown client type '{name}'")))
        }
    }
}

/// Returns the addresses of the client and of the server's side.
fn addresses(context: &Context<'_>) -> [String; 2] {
    [&context.client.peer, &context.client.local]
        .map(|end| end.as_ref().map_or_else(String::new, |end| end.to_string()))
}

/// Returns the description of the connection. Fields about the memory of Redis are 0.
fn line(context: &Context<'_>, command: &str) -> String {
    let client = &context.client;
    let [peer, local] = addresses(context);
    let age = context.wall().millis().saturating_sub(client.connected.millis()) / 1_000;
    let flags = match (client.is_kept, client.touches_nothing) {
        (false, false) => "N",
        (true, false) => "e",
        (false, true) => "T",
        (true, true) => "eT",
    };
    let resp = if client.version == Version::Two { 2 } else { 3 };
    let text = String::from_utf8_lossy;
    let (name, library, version) =
        (text(&client.name), text(&client.library.0), text(&client.library.1));
    format!(
        "id={} addr={peer} laddr={local} fd=0 name={name} age={age} idle=0 flags={flags} db={} sub=0 psub=0 ssub=0 \
         multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r \
         cmd={command} user=default redir=-1 resp={resp} lib-name={library} lib-ver={version}\n",
        client.id, client.database,
    )
}

fn kill(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let [peer, local] = addresses(context);
    let args = context.args;
    if let [_, _, address] = args {
        if *address != peer.as_bytes() {
            return Err(Error::Stated("ERR No such client"));
        }
        reply.ok();
        return Ok(Plan::Close);
    }
    if args.len() % 2 == 1 {
        return Err(error::SYNTAX);
    }
    let (mut is_meant, mut skips_own) = (true, true);
    for at in (2..args.len()).step_by(2) {
        let value = args[at + 1];
        let text = || error::shown(value);
        if context.is(at, "id") {
            let id = integer(value).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
            let id = id.ok_or(Error::Stated("ERR client-id should be greater than 0"))?;
            is_meant &= id == context.client.id;
        } else if context.is(at, "type") {
            is_meant &= is_type(value)?;
        } else if context.is(at, "addr") {
            is_meant &= value == peer.as_bytes();
        } else if context.is(at, "laddr") {
            is_meant &= value == local.as_bytes();
        } else if context.is(at, "user") {
            if value != b"default" {
                return Err(Error::Text(format!("ERR No such user '{}'", text())));
            }
        } else if context.is(at, "skipme") {
            skips_own = match value.to_ascii_lowercase().as_slice() {
                b"yes" => true,
                b"no" => false,
                _ => return Err(error::SYNTAX),
            };
        } else {
            return Err(error::SYNTAX);
        }
    }
    let is_killed = is_meant && !skips_own;
    reply.integer(is_killed.into());
    Ok(if is_killed { Plan::Close } else { Plan::Replied })
}

/// Returns the meaning of an argument that is ON or OFF.
fn switch(context: &Context<'_>) -> Result<bool, Error> {
    match (context.is(2, "on"), context.is(2, "off")) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(error::SYNTAX),
    }
}

fn no_evict(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.client.is_kept = switch(context)?;
    ok(reply)
}

fn no_touch(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    context.client.touches_nothing = switch(context)?;
    ok(reply)
}

fn reply_mode(context: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    let replies = &mut context.client.replies;
    match context.args[2].to_ascii_lowercase().as_slice() {
        b"on" => {
            *replies = Replies::On;
            return ok(reply);
        }
        b"off" => *replies = Replies::Off,
        b"skip" if *replies == Replies::Off => {}
        b"skip" => *replies = Replies::SkipNext,
        _ => return Err(error::SYNTAX),
    }
    Ok(Plan::Replied)
}

fn unpause(_: &mut Context<'_>, reply: &mut Reply<'_>) -> Result<Plan, Error> {
    ok(reply)
}

#[cfg(test)]
mod tests {
    use crate::client::End;
    use crate::testing::Door;
    use kv_protocol::ids::WallTime;

    fn door() -> Door {
        let mut door = Door::new();
        door.client.peer = Some(End::Ip("127.0.0.1:5000".parse().unwrap()));
        door.client.local = Some(End::Ip("127.0.0.1:6379".parse().unwrap()));
        door.client.connected = WallTime::from_millis(1_699_999_990_000);
        door
    }

    #[test]
    fn a_connection_is_described_with_its_properties() {
        let mut door = door();
        for command in
            ["client setname me", "client setinfo LIB-NAME lib", "client setinfo lib-ver 1.2"]
        {
            assert_eq!(door.say(command), "+OK");
        }
        door.say("client no-evict on");
        door.say("client no-touch ON");
        let info = door.say("client info");
        for field in [
            "id=7 addr=127.0.0.1:5000 laddr=127.0.0.1:6379 fd=0 name=me age=10 ",
            " flags=eT db=0 ",
            " cmd=client|info user=default redir=-1 resp=2 lib-name=lib lib-ver=1.2",
        ] {
            assert!(info.contains(field), "{field}: {info}");
        }
        assert!(door.say("client list id 3 7").contains("id=7 addr="));
        assert!(door.say("client list type normal").contains("id=7 addr="));
        assert_eq!(door.say("client list id 3"), "$0");
        assert_eq!(door.say("client list type pubsub"), "$0");
    }

    #[test]
    fn both_ends_of_a_unix_domain_socket_have_its_path() {
        let mut door = door();
        door.client.peer = Some(End::Unix("/run/kv/server_0.sock".into()));
        door.client.local = door.client.peer.clone();
        let expected = " addr=/run/kv/server_0.sock:0 laddr=/run/kv/server_0.sock:0 ";
        assert!(door.say("client info").contains(expected));
        door.say("reset");
        assert!(door.say("client info").contains(expected), "RESET changes no address");
        door.say("client kill addr /run/kv/server_0.sock:0 skipme no");
        assert!(door.is_closed);
    }

    #[test]
    fn a_connection_closes_itself() {
        for command in [
            "client kill 127.0.0.1:5000",
            "client kill id 7 skipme no",
            "client kill addr 127.0.0.1:5000 type normal skipme NO",
        ] {
            let mut door = door();
            assert!(!door.say(command).starts_with('-'), "{command}");
            assert!(door.is_closed, "{command}");
        }
        let mut door = door();
        for (command, reply) in [
            ("client kill 127.0.0.1:5001", "-ERR No such client"),
            ("client kill id 7", ":0"),
            ("client kill id 8 skipme no", ":0"),
            ("client kill laddr 127.0.0.1:1 skipme no", ":0"),
            ("client kill id 0", "-ERR client-id should be greater than 0"),
            ("client kill type foo", "-ERR Unknown client type 'foo'"),
            ("client kill user foo", "-ERR No such user 'foo'"),
            ("client kill foo bar", "-ERR syntax error"),
            ("client kill skipme maybe", "-ERR syntax error"),
            ("client kill id 7 skipme", "-ERR syntax error"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        assert!(!door.is_closed);
    }

    #[test]
    fn malformed_calls_have_the_errors_of_redis() {
        let mut door = door();
        for (command, reply) in [
            ("client", "-ERR wrong number of arguments for 'client' command"),
            ("client foo", "-ERR unknown subcommand 'foo'. Try CLIENT HELP."),
            ("client id x", "-ERR wrong number of arguments for 'client|id' command"),
            ("client list id", "-ERR syntax error"),
            ("client list id x", "-ERR Invalid client ID"),
            ("client list type foo", "-ERR Unknown client type 'foo'"),
            ("client setinfo foo bar", "-ERR Unrecognized option 'foo'"),
            ("client reply maybe", "-ERR syntax error"),
            ("client no-evict maybe", "-ERR syntax error"),
            ("client unpause", "+OK"),
            ("client id", ":7"),
        ] {
            assert_eq!(door.say(command), reply, "{command}");
        }
        let names = "-ERR Client names cannot contain spaces, newlines or special characters.\r\n";
        assert_eq!(door.run(&[b"client", b"setname", b"a b"]), names.as_bytes());
        assert_eq!(door.run(&[b"client", b"setname", &[b'a'; 1_025]]), names.as_bytes());
        let versions = "-ERR lib-ver cannot contain spaces, newlines or special characters.\r\n";
        assert_eq!(door.run(&[b"client", b"setinfo", b"lib-ver", b"\n"]), versions.as_bytes());
    }
}
