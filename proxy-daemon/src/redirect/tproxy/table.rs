//! The table in the kernel, as long as this lives.
//!
//! The table belongs to the socket that made it: nobody else can change it,
//! and the kernel removes it when the socket closes, however this process
//! ends.
use std::{io, sync::Mutex, sync::PoisonError};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::{
    netlink::Netlink,
    number::Number,
    rules::{self, Phase, Plan, Tuple},
    wire::{self, Answer, Message},
};
use crate::redirect::RedirectError;

/// Elements that go out at once; a batch has to fit into the socket's buffer.
const AT_ONCE: usize = 1000;

#[derive(Debug)]
pub(super) struct Table {
    number: Number,
    kernel: Mutex<Kernel>,
}

/// Why a batch was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Which message was refused; `None` for the batch as a whole.
    pub(super) what: Option<&'static str>,
    pub(super) cause: io::Error,
}

impl Refusal {
    fn of_all(cause: io::Error) -> Self {
        Self { what: None, cause }
    }

    fn code(&self) -> i32 {
        self.cause.raw_os_error().unwrap_or_default()
    }

    pub(super) fn explain(&self) -> RedirectError {
        let what = self.what.unwrap_or("nf_tables");
        let cause = self.cause.to_string();
        match self.code() {
            libc::EPERM if self.what.is_none() => {
                RedirectError::Capability { what: "changing the packet filter (nf_tables)", cause }
            }
            libc::EPROTONOSUPPORT => RedirectError::Kernel {
                what: "nf_tables",
                cause,
                remedy: "The kernel needs CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
            },
            _ => RedirectError::Kernel {
                what,
                cause,
                remedy: "Linux 5.14 or newer is needed, with CONFIG_NF_TABLES_INET, CONFIG_NFT_TPROXY, \
                         CONFIG_NFT_SOCKET, CONFIG_NFT_REJECT_INET and CONFIG_NFT_FIB_INET",
            },
        }
    }
}

#[derive(Debug)]
struct Kernel {
    socket: Netlink,
    sequence: u32,
}

impl Kernel {
    fn open() -> Result<Self, Refusal> {
        let socket = Netlink::open(NETLINK_NETFILTER).map_err(Refusal::of_all)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All of it or nothing.
    fn change(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        let first = self.sequence;
        let last = first.wrapping_add(u32::try_from(messages.len()).unwrap_or_default());
        self.sequence = last.wrapping_add(2);
        self.socket.send(&wire::batch(messages, first)).map_err(Refusal::of_all)?;
        let (mut refusal, mut done) = (None, messages.is_empty());
        while let Some(received) = self.socket.receive().map_err(Refusal::of_all)? {
            for answer in wire::answers(&received) {
                let Answer::Code { sequence, code } = answer else { continue };
                if code == 0 {
                    done |= sequence == last;
                } else if refusal.is_none() {
                    // The batch's head has no message of its own.
                    let index = sequence.wrapping_sub(first).checked_sub(1).map(|index| index as usize);
                    let what = index.and_then(|index| messages.get(index)).map(|message| message.what);
                    refusal = Some(Refusal { what, cause: io::Error::from_raw_os_error(code) });
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if done => Ok(()),
            None => Err(Refusal::of_all(io::Error::other("the kernel did not answer"))),
        }
    }

    /// How many packets a counter has seen.
    fn packets(&mut self, number: Number, counter: &str) -> Option<u64> {
        const DATA: u16 = 4;
        const PACKETS: u16 = 2;
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&rules::ask(number, counter).bytes(self.sequence)).ok()?;
        let mut packets = None;
        while let Some(received) = self.socket.receive().ok()? {
            for answer in wire::answers(&received) {
                let Answer::Data { attributes, .. } = answer else { continue };
                let found = wire::find(attributes, DATA).and_then(|data| wire::find(data, PACKETS));
                packets = packets.or(found.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?))));
            }
        }
        packets
    }
}

impl Table {
    /// Takes a number that nobody has, of those given.
    pub(super) fn claim(numbers: impl IntoIterator<Item = Number>) -> Result<Option<Self>, Refusal> {
        let mut kernel = Kernel::open()?;
        for number in numbers {
            match kernel.change(&[rules::claim(number)]) {
                Ok(()) => return Ok(Some(Self { number, kernel: Mutex::new(kernel) })),
                // There is one already, or it is another's.
                Err(refusal) if refusal.what.is_some() && matches!(refusal.code(), libc::EEXIST | libc::EPERM) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    pub(super) fn number(&self) -> Number {
        self.number
    }

    /// Makes everything, in the phase [`Phase::Noting`].
    pub(super) fn fill(&self, plan: &Plan) -> Result<(), Refusal> {
        self.kernel().change(&rules::fill(plan))
    }

    pub(super) fn turn(&self, plan: &Plan, phase: Phase) -> Result<(), Refusal> {
        self.kernel().change(&rules::turn(plan, phase))
    }

    /// As [`Table::turn`], into a bypass or out of it.
    pub(super) fn turn_besides_udp(&self, plan: &Plan, phase: Phase) -> Result<(), Refusal> {
        self.kernel().change(&rules::turn_besides_udp(plan, phase))
    }

    /// Lets connections that are open pass to their end.
    pub(super) fn leave_alone(&self, plan: &Plan, open: &[Tuple]) -> Result<(), Refusal> {
        open.chunks(AT_ONCE).try_for_each(|some| self.kernel().change(&rules::leave_alone(plan, some)))
    }

    pub(super) fn packets(&self, counter: &str) -> u64 {
        self.kernel().packets(self.number, counter).unwrap_or_default()
    }

    fn kernel(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the kernel check all that a plan takes, and do none of it.
pub(super) fn rehearse(plan: &Plan) -> Result<(), Refusal> {
    let mut messages = vec![rules::claim(plan.number)];
    messages.extend(rules::fill(plan));
    messages.extend(rules::turn(plan, Phase::Taking));
    messages.push(rules::poison(plan.number));
    match Kernel::open()?.change(&messages) {
        Err(refusal) if refusal.what == Some(rules::POISON) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let refusal = |what, code| Refusal { what, cause: io::Error::from_raw_os_error(code) }.explain();
        let capability = refusal(None, libc::EPERM);
        assert_eq!(capability.exit_code(), 77);
        assert!(capability.to_string().contains("CAP_NET_ADMIN"), "{capability}");
        let without = refusal(None, libc::EPROTONOSUPPORT);
        assert_eq!(without.exit_code(), 69);
        assert!(without.to_string().contains("CONFIG_NF_TABLES"), "{without}");
        let expression = refusal(Some("a rule that takes connections (NFT_TPROXY)"), libc::ENOENT);
        assert_eq!(expression.exit_code(), 69);
        assert!(
            expression.to_string().contains("a rule that takes connections (NFT_TPROXY) does not work"),
            "{expression}"
        );
    }

    /// A rehearsal leaves nothing, and works beside a table in force.
    #[test]
    fn a_table_is_claimed_once() {
        let inside = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root, for a network namespace");
            let first = Table::claim([Number::FIRST]).expect("no refusal").expect("free");
            assert!(Table::claim([Number::FIRST]).expect("no refusal").is_none(), "claimed twice");
            let other = Table::claim(Number::all()).expect("no refusal").expect("another number");
            assert_ne!(other.number(), first.number());
            drop(first);
            assert!(Table::claim([Number::FIRST]).expect("no refusal").is_some(), "free again");
        };
        std::thread::spawn(inside).join().expect("the claims");
    }
}
