//! Unicast routes: `RTM_GETROUTE`, `RTM_NEWROUTE`, `RTM_DELROUTE` (rtnetlink(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::address::family;
use super::{Netlink, NetlinkError};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;
/// `RT_SCOPE_UNIVERSE`: beyond a gateway. IPv6 routes have no other.
pub const UNIVERSE_SCOPE: u8 = 0;
/// `RT_SCOPE_LINK`: on the link itself.
pub const LINK_SCOPE: u8 = 253;
/// `RTPROT_STATIC`.
pub const PROTOCOL_STATIC: u8 = 4;

/// A unicast route with one next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Index of the link it leaves by.
    pub oif: u32,
    /// Next hop; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// [`UNIVERSE_SCOPE`] or [`LINK_SCOPE`]; ignored for IPv6.
    pub scope: u8,
    /// The address that the host's own packets get as source.
    pub source: Option<IpAddr>,
    /// Who made it (`RTPROT_…`, `/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// Priority, lower first; 0: the kernel's choice (0 for IPv4, 1024 for IPv6).
    pub metric: u32,
    /// The table, usually [`MAIN_TABLE`].
    pub table: u32,
}

impl Route {
    /// A static route on the link `oif` itself, in the main table.
    pub fn on_link(prefix: IpNet, oif: u32) -> Self {
        Self {
            prefix,
            oif,
            gateway: None,
            scope: LINK_SCOPE,
            source: None,
            protocol: PROTOCOL_STATIC,
            metric: 0,
            table: MAIN_TABLE,
        }
    }

    /// A static default route via `gateway`, in the main table.
    pub fn default_via(gateway: IpAddr, oif: u32) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        Self { gateway: Some(gateway), scope: UNIVERSE_SCOPE, ..Self::on_link(any, oif) }
    }
}

/// Which routes to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Only those that leave by this link.
    pub oif: Option<u32>,
    /// Only those of this protocol.
    pub protocol: Option<u8>,
}

impl Netlink {
    /// Adds a route.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`is_existing`](NetlinkError::is_existing) when there is a route to the same prefix with the
    /// same metric, whoever made it; `ENETUNREACH` when the gateway isn't on a link.
    pub fn add_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.new_route(route, NLM_F_CREATE | NLM_F_EXCL, "add")
    }

    /// Adds a route, in place of one to the same prefix with the same metric.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn replace_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.new_route(route, NLM_F_CREATE | NLM_F_REPLACE, "set")
    }

    /// Removes exactly this route.
    ///
    /// # Errors
    /// [`NetlinkError`]; [`is_missing`](NetlinkError::is_missing) when it is gone already.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), NetlinkError> {
        self.change(RTM_DELROUTE, 0, &encode(route), || format!("delete route {}", describe(route)))
    }

    /// The unicast routes of the main table that pass `filter`, both families. Routes with several next hops or none
    /// are left out.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        let found = self.main_table(filter)?.into_iter().filter_map(decode);
        Ok(found
            .filter(|route| {
                route.table == MAIN_TABLE
                    && filter.oif.is_none_or(|oif| oif == route.oif)
                    && filter.protocol.is_none_or(|protocol| protocol == route.protocol)
            })
            .collect())
    }

    /// What the main table silently drops, both families: destination and protocol of each blackhole route.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn blackholes(&mut self) -> Result<Vec<(IpNet, u8)>, NetlinkError> {
        let found = self.main_table(RouteFilter::default())?;
        let blackholes = found.iter().filter(|message| {
            message.header.kind == RouteType::BlackHole && u32::from(message.header.table) == MAIN_TABLE
        });
        Ok(blackholes.filter_map(|message| Some((destination(message)?, message.header.protocol.into()))).collect())
    }

    fn main_table(&mut self, filter: RouteFilter) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = MAIN_TABLE as u8;
            message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
            message.attributes.extend(filter.oif.map(RouteAttribute::Oif));
            match self.dump::<RouteMessage>(RTM_GETROUTE, &message, || "list the routes".into()) {
                // The main table of a family is made with its first route.
                Err(error) if error.is_missing() => {}
                found => routes.extend(found?),
            }
        }
        Ok(routes)
    }

    fn new_route(&mut self, route: &Route, flags: u16, verb: &str) -> Result<(), NetlinkError> {
        self.change(RTM_NEWROUTE, flags, &encode(route), || format!("{verb} route {}", describe(route)))
    }
}

fn describe(route: &Route) -> String {
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("{}{via} on link {}", route.prefix, route.oif)
}

fn encode(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.prefix.addr());
    message.header.destination_prefix_length = route.prefix.prefix_len();
    // RTA_TABLE says it in full; this byte can't.
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::from(if route.prefix.addr().is_ipv4() { route.scope } else { UNIVERSE_SCOPE });
    message.header.kind = RouteType::Unicast;
    if route.prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.prefix.network().into()));
    }
    message.attributes.push(RouteAttribute::Oif(route.oif));
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn decode(message: RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let prefix = destination(&message)?;
    let (mut oif, mut gateway, mut source, mut metric, mut table) = (None, None, None, 0, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(Route {
        prefix,
        oif: oif?,
        gateway,
        scope: header.scope.into(),
        source,
        protocol: header.protocol.into(),
        metric,
        table,
    })
}

/// The destination of an IPv4 or IPv6 route; a default route says none.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address),
        _ => None,
    });
    let address = match (given, message.header.address_family) {
        (Some(address), _) => ip(address)?,
        (None, AddressFamily::Inet) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (None, AddressFamily::Inet6) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (None, _) => return None,
    };
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
