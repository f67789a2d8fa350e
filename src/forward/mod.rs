//! What happens to a packet: pure functions of a packet and the tables.
//!
//! ```text
//!  Rx::recv ─▶ input ─▶ lookup ─▶ filter ─▶ rewrite ─▶ Tx::send
//!              strip    longest   loops,    MTU, TTL,
//!              check    prefix    spoofs    new header
//!                └▶ answered (ARP, NDP, ping): back to the port it came from
//! ```
//! Any step may end it with a [`DropReason`]; [`icmp::answer`] then turns some of them into an ICMP error.
