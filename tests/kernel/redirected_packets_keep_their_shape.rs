//! Relied on by `io::redirect`: a packet redirected from an Ethernet device's ingress to a TUN's egress comes without its
//! link header and otherwise as it was, a super-frame whole; the host's stack and netfilter have not seen it. What is
//! written to the TUN from an own address leaves by the underlay with the MAC of the next hop, a super-frame whole as well.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tapir::io::redirect::{Destination, Redirect};
use tapir::packet::{Gso, Packet};
use tapir::sys::device::LOOPBACK;
use tapir::sys::tap::{Layer, VNET_HEADER, open_queue};
use tapir::wire::virtio_net;
