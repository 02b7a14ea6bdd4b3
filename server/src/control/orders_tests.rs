//! Tests of the orders' port, mostly without sockets: only accepted connections may give orders, and each order is
//! received once.

use kv_protocol::control_message::{OrderKind, OrdersHello, opcode};
use kv_protocol::frame::FrameRules;
use kv_protocol::ids::{BootId, ClusterId, ClusterKey, Incarnation, Member, ServerId};
use kv_protocol::key::{self, Challenge, Link, Nonce, Seal};
use kv_protocol::limits::{MAX_CONTROL_BODY, SESSION_IDLE};
use kv_protocol::placement::Placement;
use kv_shard::{ConnectionMemory, Identity};
use proptest::prelude::*;

use super::*;
use crate::descriptors::ConnectionBounds;
use crate::statistics::Statistics;

const NOW: Time = Time::from_nanos(1_000);
const ME: Member = Member { server: ServerId(1), incarnation: Incarnation(11) };
const KEY: ClusterKey = ClusterKey(6);
const EPOCH: Epoch = Epoch { number: 3, boot: BootId(33) };
const HELLO: OrdersHello = OrdersHello { cluster: ClusterId(5), epoch: EPOCH, to: ME };

fn node() -> Arc<ServerProcess> {
    let placement = Placement::new(3, 1);
    let identity = Identity {
        cluster: ClusterId(5),
        key: KEY,
        me: ME,
        shard: ShardId(0),
        placement,
        failure_timeout: Default::default(),
        session_idle: SESSION_IDLE,
        long_value: kv_shard::LONG_VALUE,
    };
    let statistics =
        Statistics::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
    ServerProcess::new(identity, statistics, Arc::default(), Vec::new(), ".".into())
}

const DIALLER: Nonce = Nonce(21);
const ACCEPTOR: Nonce = Nonce(22);

/// Returns the two frames of a coordinator's handshake: the challenge, and the hello, which is sealed with both nonces.
fn bytes_of(hello: &OrdersHello) -> Vec<u8> {
    let mut bytes = Vec::new();
    Challenge { nonce: DIALLER, shard: ShardId(0) }.write(&mut bytes);
    hello.write(&Seal::new(KEY, Link::Orders, DIALLER, ACCEPTOR), &mut bytes);
    bytes
}

fn accepted() -> OrdersLink {
    OrdersLink::new(NOW, ACCEPTOR)
}

fn opcodes(mut bytes: &[u8]) -> Vec<u8> {
    let mut opcodes = Vec::new();
    let rules = FrameRules::checked(MAX_CONTROL_BODY);
    while let Some(frame) = kv_protocol::frame::split_frame(bytes, &rules).unwrap() {
        opcodes.push(frame.opcode);
        bytes = &bytes[frame.consumed..];
    }
    opcodes
}

#[test]
fn orders_split_at_any_byte_are_accepted_once() {
    let drain = Order { id: OrderId(7), kind: OrderKind::Drain };
    let mut stream = bytes_of(&HELLO);
    drain.write(&mut stream);
    for cut in 0..stream.len() {
        let node = node();
        let mut link = accepted();
        let mut orders = link.on_bytes(NOW, &node, &stream[..cut]);
        orders.extend(link.on_bytes(NOW, &node, &stream[cut..]));
        assert_eq!(orders, [drain], "cut at {cut}");
        assert_eq!(opcodes(&link.output), [key::opcode::PROOF, opcode::ORDERS_WELCOME]);
        assert_eq!(link.deadline, None);
    }
}

#[test]
fn strangers_and_former_coordinators_are_rejected() {
    let older = Epoch { number: 2, ..EPOCH };
    let rival = Epoch { boot: BootId(34), ..EPOCH };
    let impossible = Epoch { number: u64::MAX, ..EPOCH };
    let wrong = [
        OrdersHello { cluster: ClusterId(6), ..HELLO },
        OrdersHello { to: Member { incarnation: Incarnation(12), ..ME }, ..HELLO },
        OrdersHello { to: Member { server: ServerId(2), ..ME }, ..HELLO },
        OrdersHello { epoch: older, ..HELLO },
        OrdersHello { epoch: rival, ..HELLO },
        OrdersHello { epoch: impossible, ..HELLO },
    ];
    for hello in wrong {
        let node = node();
        node.obey(&HELLO).unwrap();
        let mut link = accepted();
        let mut bytes = bytes_of(&hello);
        Order { id: OrderId(1), kind: OrderKind::Drain }.write(&mut bytes);
        assert!(link.on_bytes(NOW, &node, &bytes).is_empty(), "{hello:?}");
        assert_eq!(opcodes(&link.output), [key::opcode::PROOF, opcode::REFUSED]);
        assert!(link.is_closing);
        assert_eq!(node.epoch(), EPOCH);
    }
    let node = node();
    let newer = Epoch { number: 4, boot: BootId(1) };
    node.obey(&HELLO).unwrap();
    let mut link = accepted();
    link.on_bytes(NOW, &node, &bytes_of(&OrdersHello { epoch: newer, ..HELLO }));
    assert_eq!(node.epoch(), newer);
}

/// Neither a replayed handshake nor a guessed key allows a peer to give orders.
#[test]
fn a_hello_sealed_for_another_connection_or_with_another_key_is_rejected() {
    for seal in [
        Seal::new(KEY, Link::Orders, DIALLER, Nonce(23)),
        Seal::new(KEY, Link::Reports, DIALLER, ACCEPTOR),
        Seal::new(ClusterKey(7), Link::Orders, DIALLER, ACCEPTOR),
    ] {
        let node = node();
        let mut link = accepted();
        let mut bytes = Vec::new();
        Challenge { nonce: DIALLER, shard: ShardId(0) }.write(&mut bytes);
        HELLO.write(&seal, &mut bytes);
        Order { id: OrderId(1), kind: OrderKind::Shutdown }.write(&mut bytes);
        assert!(link.on_bytes(NOW, &node, &bytes).is_empty(), "{seal:?}");
        assert_eq!(opcodes(&link.output), [key::opcode::PROOF, opcode::REFUSED]);
        assert_eq!(node.epoch(), Epoch::default());
    }
}

#[test]
fn an_order_without_a_hello_is_rejected() {
    let node = node();
    let mut link = accepted();
    let mut bytes = Vec::new();
    Order { id: OrderId(1), kind: OrderKind::Shutdown }.write(&mut bytes);
    assert!(link.on_bytes(NOW, &node, &bytes).is_empty());
    assert!(link.is_closing);
}

#[test]
fn a_new_connection_of_the_coordinator_closes_its_previous_one() {
    let node = node();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The thread runs for the life of this process.
    std::thread::spawn(move || run(&node, listener));
    let connect = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = Vec::new();
        Challenge { nonce: DIALLER, shard: ShardId(0) }.write(&mut bytes);
        stream.write_all(&bytes).unwrap();
        let mut received = [0; 128];
        let count = stream.read(&mut received).unwrap();
        let rules = FrameRules::checked(MAX_CONTROL_BODY);
        let frame = kv_protocol::frame::split_frame(&received[..count], &rules).unwrap().unwrap();
        let seal = Seal::from_proof(KEY, Link::Orders, DIALLER, frame.body).unwrap();
        bytes.clear();
        HELLO.write(&seal, &mut bytes);
        stream.write_all(&bytes).unwrap();
        let count = stream.read(&mut received).unwrap();
        assert_eq!(opcodes(&received[..count]), [opcode::ORDERS_WELCOME]);
        stream
    };
    let mut older = connect();
    let mut newer = connect();
    assert_eq!(older.read(&mut [0; 64]).expect("the end of the older connection"), 0);
    newer.set_nonblocking(true).unwrap();
    let still_open = newer.read(&mut [0; 64]).unwrap_err();
    assert_eq!(still_open.kind(), io::ErrorKind::WouldBlock);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        is_accepted in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let node = node();
        let mut link = accepted();
        if is_accepted {
            link.on_bytes(NOW, &node, &bytes_of(&HELLO));
        }
        link.on_bytes(NOW, &node, &bytes);
        prop_assert!(link.output.len() < 4_096);
    }
}
