//! Flows: which packets belong together, and a table of what is known of each.
//!
//! [`Key::of`] tells a packet's flow, both directions the same; [`Table`] holds a value for each flow, of any type. Nothing
//! in forwarding reads it yet: it is made for connection tracking, which does not exist. Both are pure; the time is a
//! parameter.

mod key;
mod table;
#[cfg(test)]
mod tests;

pub use key::{Direction, Key, Tuple, Untracked};
pub use table::{Flow, Limits, Owner, Refused, Table};
