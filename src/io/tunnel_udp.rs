//! The tunnel inside UDP: the datagrams of [`TunnelRaw`], with a UDP header in between.
//!
//! **Sending** is a raw socket's, since the source port is another for each flow. **Receiving** is a raw socket's of protocol
//! 17, too: it hands over real headers, congestion marks included. It would hear every UDP datagram for the node, so a
//! filter keeps those for our port, and of them the share of this queue. A stranger's flood costs what it costs the raw
//! tunnel.
//!
//! What that costs everybody else's UDP: the kernel clones each datagram for the node once for each socket (the header, not
//! the data; `raw_v4_input` in `net/ipv4/raw.c`), and runs its filter. So there is one socket for each worker and no more, at
//! most four unless the config has more workers. A single socket would have one worker take all that comes by UDP.
//!
//! **The port** is held by an ordinary UDP socket that keeps nothing. It keeps the kernel from answering "port
//! unreachable", and two programs from taking the same port (`tests/kernel/raw_socket_hears_udp.rs`).
//!
//! **Errors.** The raw socket is told of ICMP about any UDP datagram of this node, resolvers' included; what was not sent
//! to our port is left out.
//!
//! The kernel joins UDP that it forwards, where somebody turned `rx-udp-gro-forwarding` or `rx-gro-list` on, and would hand
//! over several datagrams as one. Not those without a checksum (`udp_gro_receive_segment` in `net/ipv4/udp_offload.c`),
//! which is how nodes send them.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::filter::{self, Share};
use super::tunnel::BUFFER;
use super::tunnel_raw::TunnelRaw;
use crate::sys::filter::KEEP_NOTHING;
use crate::sys::{raw, udp};
use crate::wire::header::protocol;
use crate::wire::outer::{PORT, Transport};

/// Opens the `queues` queues of the node whose underlay address is `node`. Peers are taken to send inner packets of at
/// most `mtu` bytes. Each queue takes its share of flows; it sends any.
///
/// # Errors
/// `EADDRINUSE` when something else has the port, and those of [`raw::open`].
pub fn open(node: Ipv4Addr, mtu: u16, queues: usize) -> io::Result<Vec<TunnelRaw>> {
    let port = Arc::new(udp::open_filtered(node, PORT, &KEEP_NOTHING)?);
    let open = |index| {
        let share = Share { index: index as u16, of: queues as u16 };
        let socket = raw::open_filtered(protocol::UDP, node, BUFFER, &filter::inside_udp(share))?;
        Ok(TunnelRaw::over(vec![socket], Transport::Udp, mtu, Some(port.clone())))
    };
    (0..queues).map(open).collect()
}
