//! Tests of the parser of commands. The texts of errors are those of redis-server 7.0.15.

use proptest::prelude::*;

use super::*;

/// The result as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Command(Vec<Vec<u8>>),
    Nothing,
    Error(ParseError),
}

/// A caller of the parser.
struct Connection {
    parser: CommandParser,
    /// The bytes since the end of the last command.
    received: Vec<u8>,
    events: Vec<Event>,
    /// The result of the last incomplete call.
    missing: usize,
    calls: usize,
}

impl Connection {
    fn new(limit: usize) -> Connection {
        let parser = CommandParser::new(limit);
        Connection { parser, received: Vec::new(), events: Vec::new(), missing: 0, calls: 0 }
    }

    fn receive(&mut self, part: &[u8]) {
        if matches!(self.events.last(), Some(Event::Error(_))) {
            return;
        }
        self.received.extend_from_slice(part);
        let mut at = 0;
        loop {
            self.calls += 1;
            let rest = &self.received[at..];
            let (event, consumed) = match self.parser.parse(rest) {
                Ok(Parsed::Command { args, consumed }) => {
                    (Event::Command(args.iter().map(<[u8]>::to_vec).collect()), consumed)
                }
                Ok(Parsed::Nothing { consumed }) => (Event::Nothing, consumed),
                Ok(Parsed::Incomplete { missing }) => {
                    self.missing = missing;
                    break;
                }
                Err(error) => {
                    self.events.push(Event::Error(error));
                    break;
                }
            };
            assert!(consumed > 0 && consumed <= rest.len(), "every result makes progress");
            at += consumed;
            self.events.push(event);
        }
        self.received.drain(..at);
    }
}

fn events(parts: &[&[u8]]) -> Vec<Event> {
    let mut connection = Connection::new(MAX_COMMAND_BYTES);
    parts.iter().for_each(|part| connection.receive(part));
    connection.events
}

fn command(words: &[&[u8]]) -> Event {
    Event::Command(words.iter().map(|word| word.to_vec()).collect())
}

fn encode(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Returns a line with these words, each of them in this style.
fn line(words: &[(Vec<u8>, u8)]) -> Vec<u8> {
    let mut line = Vec::new();
    for (word, style) in words {
        let is_plain = !word.is_empty()
            && !word.iter().any(|byte| byte.is_ascii_whitespace() || b"\"'\n\x0b".contains(byte));
        match style % 3 {
            0 if is_plain => line.extend_from_slice(word),
            1 if !word.contains(&b'\n') && !word.ends_with(b"\\") => {
                line.push(b'\'');
                for byte in word {
                    if *byte == b'\'' {
                        line.push(b'\\');
                    }
                    line.push(*byte);
                }
                line.push(b'\'');
            }
            _ => {
                line.push(b'"');
                word.iter().for_each(|byte| {
                    line.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
                });
                line.push(b'"');
            }
        }
        line.push(b' ');
    }
    line.extend_from_slice(b"\r\n");
    line
}

fn words() -> impl Strategy<Value = Vec<(Vec<u8>, u8)>> {
    let word = prop::collection::vec(any::<u8>(), 0..12)
        .prop_filter("single quotes have no escape for a backslash", |word| {
            !word.windows(2).any(|pair| pair == b"\\'")
        });
    prop::collection::vec((word, any::<u8>()), 1..6)
        .prop_filter("it would be an array", |words| words[0].0.first() != Some(&b'*'))
}

fn arguments() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20)
}

/// Bytes that often are a part of a command.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        Just(b"*2\r\n".to_vec()),
        Just(b"*1\r\n$4\r\nPING\r\n".to_vec()),
        Just(b"$3\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\"a\\x4".to_vec()),
        "[*$0-9\r\n'\"\\\\ -]{0,4}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn a_command_has_the_same_arguments_however_its_bytes_are_cut(
        commands in prop::collection::vec(arguments(), 1..4),
        words in words(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = commands.iter().flat_map(|args| encode(args)).collect::<Vec<u8>>();
        bytes.extend(line(&words));
        let mut expected: Vec<Event> = commands.into_iter().map(Event::Command).collect();
        expected.push(Event::Command(words.into_iter().map(|(word, _)| word).collect()));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(&events(&parts), &expected);
        let parts: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&events(&parts), &expected);
    }

    #[test]
    fn any_bytes_have_the_same_result_however_they_are_cut(bytes in noise()) {
        let whole = events(&[&bytes]);
        prop_assert_eq!(&whole, &events(&bytes.chunks(1).collect::<Vec<_>>()));
        prop_assert_eq!(&whole, &events(&bytes.chunks(7).collect::<Vec<_>>()));
    }

    #[test]
    fn each_byte_is_examined_at_most_three_times_however_the_bytes_are_cut(
        bytes in noise(),
        part in 1_usize..9,
    ) {
        let mut connection = Connection::new(MAX_COMMAND_BYTES);
        bytes.chunks(part).for_each(|part| connection.receive(part));
        prop_assert!(connection.parser.examined <= 3 * bytes.len());
        let parts = bytes.len().div_ceil(part);
        prop_assert!(connection.calls <= parts + connection.events.len());
    }

    #[test]
    fn no_more_bytes_are_missing_than_complete_the_command(args in arguments()) {
        let bytes = encode(&args);
        for end in 0..bytes.len() {
            let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
            let Ok(Parsed::Incomplete { missing }) = parser.parse(&bytes[..end]) else {
                panic!("{end} bytes are not the whole command");
            };
            prop_assert!(missing >= 1 && missing <= bytes.len() - end);
        }
    }
}

#[test]
fn the_bytes_of_a_bulk_string_are_not_examined_and_not_copied() {
    let bytes = encode(&[b"SET".to_vec(), b"key".to_vec(), vec![b'\r'; 1 << 20]]);
    let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
    for end in (0..bytes.len()).step_by(1_000) {
        assert!(matches!(parser.parse(&bytes[..end]), Ok(Parsed::Incomplete { .. })));
    }
    let Ok(Parsed::Command { args, consumed }) = parser.parse(&bytes) else {
        panic!("the command is complete");
    };
    assert_eq!((args.count(), consumed), (3, bytes.len()));
    let value = args.get(2).unwrap();
    assert_eq!(value.as_ptr_range().end, bytes[..bytes.len() - 2].as_ptr_range().end);
    assert_eq!(args.get(3), None);
    assert!(parser.examined < 100);
}

#[test]
fn a_long_line_is_searched_once() {
    for begin in [&b"*"[..], b"*1\r\n$", b""] {
        let mut connection = Connection::new(MAX_COMMAND_BYTES);
        connection.receive(begin);
        (0..MAX_LINE_BYTES - 1).for_each(|_| connection.receive(b"1"));
        assert_eq!(connection.events, []);
        assert!(connection.parser.examined < MAX_LINE_BYTES + 100);
    }
}

#[test]
fn the_rest_of_a_long_bulk_string_is_known_to_be_missing() {
    let mut connection = Connection::new(MAX_COMMAND_BYTES);
    connection.receive(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777216\r");
    assert_eq!(connection.missing, 1);
    connection.receive(b"\n");
    assert_eq!(connection.missing, MAX_BULK_BYTES + 2);
    connection.receive(&vec![0; MAX_BULK_BYTES]);
    assert_eq!(connection.missing, 2);
    connection.receive(b"\r\n*");
    assert_eq!((connection.events.len(), connection.missing), (1, 1));
}

#[test]
fn an_announced_number_of_arguments_reserves_no_memory() {
    let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
    parser.parse(b"*1048576\r\n$1\r\na").unwrap();
    assert_eq!(parser.spans.capacity(), 0);
    parser.parse(b"*1048576\r\n$1\r\na\r\n").unwrap();
    assert!(parser.spans.capacity() <= 4 * KEPT_ARGS);
}

#[test]
fn memory_for_a_long_command_is_released_when_the_next_one_has_begun() {
    let long_array = encode(&vec![b"a".to_vec(); 10_000]);
    let long_line = b"a ".repeat(10_000);
    for long in [long_array, [&long_line[..], b"\r\n"].concat()] {
        for next in [&b""[..], b"*", b"*2\r\n$1\r\na\r\n", b"PI"] {
            let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
            assert!(matches!(parser.parse(&long), Ok(Parsed::Command { .. })));
            assert!(matches!(parser.parse(next), Ok(Parsed::Incomplete { .. })));
            assert!(parser.spans.capacity() <= 4 * KEPT_ARGS);
            assert!(parser.decoded.capacity() <= KEPT_BYTES);
        }
    }
}

#[test]
fn empty_lines_and_empty_arrays_are_no_commands() {
    let nothing = Event::Nothing;
    for bytes in [&b"\r\n"[..], b"\n", b" \t\x0b\x0c \r\n", b"*0\r\n", b"*-1\r\n", b"*-5\r\n"] {
        assert_eq!(events(&[bytes]), std::slice::from_ref(&nothing), "{}", bytes.escape_ascii());
    }
    let bytes = b"*0\r\n\r\n   \r\nPING\r\n\n*1\r\n$4\r\nPING\r\n";
    let ping = command(&[b"PING"]);
    let none = || Event::Nothing;
    assert_eq!(events(&[bytes]), [none(), none(), none(), ping.clone(), none(), ping]);
}

#[test]
fn words_in_lines_are_quoted_as_in_redis() {
    let lines: &[(&[u8], &[&[u8]])] = &[
        (b"ECHO \"a b\\x41\\xZZ\\n\\q\"\r\n", &[b"ECHO", b"a bAxZZ\nq"]),
        (b"ECHO \"\\r\\t\\b\\a\\\\\\\"\\xfF\"\n", &[b"ECHO", b"\r\t\x08\x07\\\"\xff"]),
        (b"ECHO 'a\\'b\\n\"'\n", &[b"ECHO", b"a'b\\n\""]),
        (b"ECHO a\"b c\" 'd'\n", &[b"ECHO", b"ab c", b"d"]),
        (b"ECHO a\x0bb\x0c\n", &[b"ECHO", b"a\x0bb\x0c"]),
        (b"ECHO \"a\"\x0b\x0c\n", &[b"ECHO", b"a"]),
        (b"ECHO a\rb\r\n", &[b"ECHO", b"a", b"b"]),
        (b"ECHO a\\nb\n", &[b"ECHO", b"a\\nb"]),
        (b"\x0b\x0c  PING\r\r\n", &[b"PING"]),
        (b"\"\"\r\n", &[b""]),
        (b" *1\n", &[b"*1"]),
    ];
    for (line, words) in lines {
        assert_eq!(events(&[line]), [command(words)], "{}", line.escape_ascii());
    }
    let unbalanced =
        [&b"ECHO \"a\"b\n"[..], b"ECHO \"a\n", b"ECHO 'a\n", b"ECHO \"a\\\r\n", b"'a'b\n"];
    for line in unbalanced {
        let error = Event::Error(ParseError::UnbalancedQuotes);
        assert_eq!(events(&[line]), [error], "{}", line.escape_ascii());
    }
}

#[test]
fn errors_have_the_texts_of_redis() {
    let cases: &[(&[u8], &[u8])] = &[
        (b"*1\r\nx4\r\nPING\r\n", b"expected '$', got 'x'"),
        (b"*1\r\n\r\r\n", b"expected '$', got ' '"),
        (b"*1\r\n\n\r\n", b"expected '$', got ' '"),
        (b"*1\r\n\xff4\r\nPING\r\n", b"expected '$', got '\xff'"),
        (b"*x\r\n", b"invalid multibulk length"),
        (b"*\r\n", b"invalid multibulk length"),
        (b"*01\r\n", b"invalid multibulk length"),
        (b"*+1\r\n$4\r\nPING\r\n", b"invalid multibulk length"),
        (b"*-0\r\n", b"invalid multibulk length"),
        (b"*00\r\n", b"invalid multibulk length"),
        (b"*2147483648\r\n", b"invalid multibulk length"),
        (b"*99999999999999999999\r\n", b"invalid multibulk length"),
        (b"*1\n$4\nPING\r\n", b"invalid multibulk length"),
        (b"*1\r\n$-1\r\n", b"invalid bulk length"),
        (b"*1\r\n$04\r\nPING\r\n", b"invalid bulk length"),
        (b"*1\r\n$\r\n", b"invalid bulk length"),
        (b"*1\r\n$16777217\r\n", b"invalid bulk length"),
        (b"\"\r\n", b"unbalanced quotes in request"),
        (&[b'x'; MAX_LINE_BYTES + 1], b"too big inline request"),
        (&[b'*'; MAX_LINE_BYTES + 1], b"too big mbulk count string"),
        (&[b"*1\r\n", &[b'1'; MAX_LINE_BYTES + 1][..]].concat(), b"too big bulk count string"),
    ];
    for (bytes, text) in cases {
        let shown = bytes[..bytes.len().min(30)].escape_ascii();
        let [Event::Error(error)] = events(&[bytes])[..] else { panic!("{shown} is an error") };
        assert_eq!(error.text(), [b"ERR Protocol error: ", *text].concat(), "{shown}");
    }
}

/// Redis 7 accepts more arguments than Redis 6.
#[test]
fn a_command_has_at_most_a_million_arguments() {
    assert_eq!(events(&[b"*1048576\r\n"]), []);
    assert_eq!(events(&[b"*1048577\r\n"]), [Event::Error(ParseError::InvalidCount)]);
    let args = vec![b"x".to_vec(); MAX_ARGS];
    assert_eq!(events(&[&encode(&args)]), [Event::Command(args)]);
}

#[test]
fn the_limit_of_a_line_does_not_depend_on_where_it_is_cut() {
    for (length, is_accepted) in [(MAX_LINE_BYTES, true), (MAX_LINE_BYTES + 1, false)] {
        let line = [&vec![b'x'; length][..], b"\n"].concat();
        for parts in [vec![&line[..]], line.chunks(1_000).collect(), line.chunks(length).collect()]
        {
            let events = events(&parts);
            assert_eq!(matches!(events[..], [Event::Command(_)]), is_accepted);
        }
    }
}

#[test]
fn a_command_longer_than_the_limit_is_an_error_as_soon_as_it_is_known() {
    let bytes = encode(&[b"SET".to_vec(), b"key".to_vec(), vec![7; 64]]);
    let mut connection = Connection::new(bytes.len());
    connection.receive(&[&bytes[..], &bytes[..]].concat());
    assert_eq!(connection.events.len(), 2);
    let mut connection = Connection::new(bytes.len() - 1);
    connection.receive(&bytes[..bytes.len() - 66]);
    let error = ParseError::TooBigCommand(bytes.len() - 1);
    assert_eq!(connection.events, [Event::Error(error)]);
    assert_eq!(error.text(), &b"ERR Protocol error: command longer than 92 bytes"[..]);
    connection.events.clear();
    connection.receive(&bytes[bytes.len() - 66..]);
    assert_eq!(connection.events, [Event::Error(error)]);
    let mut connection = Connection::new(bytes.len() - 1);
    connection.receive(&bytes);
    assert_eq!(connection.events, [Event::Error(error)], "all bytes arrive at once");
}

#[test]
fn an_error_is_returned_again() {
    let many =
        [&b"*1\r\nx\r\n"[..], b"*1\r\n$-1\r\n", b"*x\r\n", b"'\n", &[b'*'; MAX_LINE_BYTES + 1]];
    for bytes in many {
        let mut parser = CommandParser::new(MAX_COMMAND_BYTES);
        let error = parser.parse(bytes).unwrap_err();
        assert_eq!(parser.parse(bytes).unwrap_err(), error);
        assert_eq!(parser.parse(&[bytes, b"\r\nPING\r\n"].concat()).unwrap_err(), error);
    }
}

/// Redis does not check them.
#[test]
fn the_bytes_of_line_ends_in_arrays_are_not_checked() {
    let ping = command(&[b"PING"]);
    assert_eq!(events(&[b"*1\rZ$4\rYPINGxyPING\r\n"]), [ping.clone(), ping]);
}
