//! Fault injection for tests of the engine. Builds without debug assertions, such as releases,
//! do not include this module.

use std::str::FromStr;
use std::thread;

/// A fault that replaces one step of an engine's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    /// The number of steps before it.
    after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Panic,
    Hang,
}

/// The error of a text that describes no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither panic:N nor hang:N")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    /// Parses `panic:N` or `hang:N`, where N is the number of steps before the fault.
    fn from_str(text: &str) -> Result<Fault, UnknownFault> {
        let fault = text.split_once(':').and_then(|(kind, after)| {
            let kind = match kind {
                "panic" => Kind::Panic,
                "hang" => Kind::Hang,
                _ => return None,
            };
            let after = after.parse().ok()?;
            Some(Fault { kind, after })
        });
        fault.ok_or_else(|| UnknownFault(text.to_owned()))
    }
}

impl Fault {
    /// Called before each step.
    pub(super) fn strike(&mut self) {
        if self.after > 0 {
            self.after -= 1;
            return;
        }
        match self.kind {
            Kind::Panic => panic!("a fault that a test asked for"),
            Kind::Hang => loop {
                thread::park();
            },
        }
    }
}
