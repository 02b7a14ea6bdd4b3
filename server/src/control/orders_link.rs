//! A connection to the orders' port, without its socket: the handshake, then orders and settings.

use kv_protocol::control_message::{
    Admission, Order, OrdersHello, Settings, opcode, read_dump_directory, write_orders_welcome,
};
use kv_protocol::frame::{Frame, FrameBuffer, FrameRules};
use kv_protocol::ids::Time;
use kv_protocol::key::{self, Challenge, Link, Nonce, Seal};
use kv_protocol::limits::{FRAME_DEADLINE, HELLO_DEADLINE, MAX_CONTROL_BODY, MAX_HELLO_BODY};

use super::operation::ServerProcess;

/// One connection to the orders' port: a state machine over bytes.
#[derive(Debug)]
pub(super) struct OrdersLink {
    input: FrameBuffer,
    /// The bytes to send.
    pub(super) output: Vec<u8>,
    /// This side's nonce of the handshake.
    nonce: Nonce,
    /// The key and the nonces of the handshake; `None` until the other side has sent its challenge.
    seal: Option<Seal>,
    /// True once the hello was accepted.
    pub(super) is_accepted: bool,
    /// True if the connection is to be closed once all output is sent.
    pub(super) is_closing: bool,
    /// The reason why the connection is closing, until the reason is logged.
    pub(super) refused: Option<String>,
    /// The time by which the rest of a frame or of the handshake must arrive, or the last output must be sent.
    pub(super) deadline: Option<Time>,
}

impl OrdersLink {
    /// Creates the state of a connection that was just accepted. `nonce` is this side's.
    pub(super) fn new(now: Time, nonce: Nonce) -> OrdersLink {
        OrdersLink {
            input: FrameBuffer::new(FrameRules::checked(MAX_HELLO_BODY)),
            output: Vec::new(),
            nonce,
            seal: None,
            is_accepted: false,
            is_closing: false,
            refused: None,
            deadline: Some(now + HELLO_DEADLINE),
        }
    }

    /// Processes received bytes; returns the orders among them.
    pub(super) fn on_bytes(
        &mut self,
        now: Time,
        node: &ServerProcess,
        received: &[u8],
    ) -> Vec<Order> {
        let mut orders = Vec::new();
        self.input.extend(received);
        while !self.is_closing {
            let taken = match (self.input.next_frame(), self.seal) {
                (Ok(Some(frame)), _) if self.is_accepted => {
                    self.deadline = Some(now + FRAME_DEADLINE);
                    match frame.opcode {
                        opcode::DUMP_TO => read_dump_directory(frame.body)
                            .map(|directory| node.dumps.set_directory(directory.into()))
                            .map_err(|error| error.to_string()),
                        opcode::SETTINGS => Settings::read(frame.body)
                            .map_err(|error| error.to_string())
                            .and_then(|settings| node.take_settings(&settings)),
                        _ => take_order(frame).map(|order| orders.push(order)),
                    }
                }
                (Ok(Some(frame)), Some(seal)) => judge_hello(node, &seal, frame).map(|()| {
                    self.is_accepted = true;
                    self.deadline = Some(now + FRAME_DEADLINE);
                    write_orders_welcome(&mut self.output);
                    self.input.set_rules(FrameRules::checked(MAX_CONTROL_BODY));
                }),
                (Ok(Some(frame)), None) => take_challenge(node, self.nonce, frame).map(|seal| {
                    seal.write_proof(&mut self.output);
                    self.seal = Some(seal);
                }),
                (Ok(None), _) => break,
                (Err(error), _) => Err(error.to_string()),
            };
            if let Err(reason) = taken {
                self.refuse(now, reason);
            }
        }
        if self.is_accepted {
            let due = self.deadline.unwrap_or(now + FRAME_DEADLINE);
            self.deadline = self.input.is_partial().then_some(due);
        }
        orders
    }

    fn refuse(&mut self, now: Time, reason: String) {
        self.deadline = Some(now + FRAME_DEADLINE);
        Admission::Refused { reason: reason.clone() }.write(&mut self.output);
        self.refused = Some(reason);
        self.is_closing = true;
    }
}

fn take_challenge(node: &ServerProcess, nonce: Nonce, frame: Frame<'_>) -> Result<Seal, String> {
    if frame.opcode != key::opcode::CHALLENGE {
        return Err(format!(
            "the first frame at the orders' port must be CHALLENGE, not opcode {:#04x}",
            frame.opcode
        ));
    }
    let challenge = Challenge::read(frame.body).map_err(|error| error.to_string())?;
    Ok(Seal::new(node.key, Link::Orders, challenge.nonce, nonce))
}

fn judge_hello(node: &ServerProcess, seal: &Seal, frame: Frame<'_>) -> Result<(), String> {
    if frame.opcode != opcode::ORDERS_HELLO {
        return Err(format!(
            "the frame after CHALLENGE must be ORDERS-HELLO, not opcode {:#04x}",
            frame.opcode
        ));
    }
    let hello = OrdersHello::read(frame.body, seal).map_err(|error| error.to_string())?;
    node.obey(&hello).map_err(|refused| refused.to_string())
}

fn take_order(frame: Frame<'_>) -> Result<Order, String> {
    Order::read(frame.opcode, frame.body).map_err(|error| error.to_string())
}
