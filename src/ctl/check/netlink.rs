//! Links, addresses and routes of the calling thread's network namespace (rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its driver's kind as `ip -d link` names it; empty for hardware.
    pub kind: String,
    /// Administratively up.
    pub up: bool,
    /// Its MTU.
    pub mtu: u32,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
}

/// A route of any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub prefix: IpNet,
    /// The interface that it leads out of.
    pub link: Option<u32>,
    /// Who made it (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// It drops.
    pub blackhole: bool,
    /// Lower is better.
    pub metric: u32,
    /// In the main table, where the host looks.
    pub main: bool,
}

/// Every interface.
///
/// # Errors
/// The socket's.
pub fn links() -> io::Result<Vec<Link>> {
    dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
        _ => None,
    })
}

/// Every address, both families.
///
/// # Errors
/// The socket's.
pub fn addresses() -> io::Result<Vec<Address>> {
    dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| match message {
        RouteNetlinkMessage::NewAddress(address) => read_address(&address),
        _ => None,
    })
}

/// Every unicast and blackhole route, both families.
///
/// # Errors
/// The socket's.
pub fn routes() -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        routes.extend(dump(RouteNetlinkMessage::GetRoute(request), |message| match message {
            RouteNetlinkMessage::NewRoute(route) => read_route(&route),
            _ => None,
        })?);
    }
    Ok(routes)
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind_name(kind)),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    // On a point-to-point interface `Address` is the other end.
    let own = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some(Address { link: message.header.index, address: own.or(any)? })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let blackhole = message.header.kind == RouteType::BlackHole;
    if !blackhole && message.header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut link, mut metric) = (unspecified, None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = (*address).into(),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    let main = table == u32::from(netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN);
    Some(Route { prefix, link, protocol: message.header.protocol.into(), blackhole, metric, main })
}

/// Sends a dump request and reads the answers to its end.
fn dump<T>(request: RouteNetlinkMessage, read: impl Fn(RouteNetlinkMessage) -> Option<T>) -> io::Result<Vec<T>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    message.header.flags = NLM_F_DUMP | NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read_datagram(&datagram, &mut |message| found.extend(read(message)))? {
            return Ok(found);
        }
    }
}

/// Whether the dump has ended with this datagram. A message that the decoder does not understand is passed over:
/// attributes of other people's interfaces must not hide ours.
fn read_datagram(datagram: &[u8], each: &mut impl FnMut(RouteNetlinkMessage)) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some((length, kind)) = frame(rest) {
        const DONE: u16 = 3;
        if kind == DONE {
            return Ok(true);
        }
        let payload = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]).map(|m| m.payload);
        match payload {
            Ok(NetlinkPayload::InnerMessage(message)) => each(message),
            Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
            _ => {}
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(false)
}

/// Length and type of the message that `bytes` starts with (netlink(7), `struct nlmsghdr`).
fn frame(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (16..=bytes.len()).contains(&length).then_some((length, kind))
}
