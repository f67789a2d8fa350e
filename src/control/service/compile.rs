//! From one service to its frontends.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::Settings;
use super::claims::Claimed;
use super::endpoints::{Endpoints, Place};
use super::object::{Affinity, EndpointSlice, IpMode, Name, Port, Service};
use crate::control::Endpoint;
use crate::table::Choice;
use crate::table::service::{self, Backend, Frontend, Kind};

/// How long a client keeps its endpoint when nothing is said (Kubernetes API, `ClientIPConfig`).
const AFFINITY: Duration = Duration::from_secs(10_800);

/// What a service comes to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Its frontends.
    pub claimed: Claimed,
    /// Where load balancers ask, and how many endpoints of this node they are told of.
    pub health: Option<(u16, usize)>,
}

/// What frontends depend on beside services.
pub struct Surroundings<'a> {
    /// What is configured.
    pub settings: &'a Settings,
    /// The addresses of the host itself.
    pub host: &'a [IpAddr],
    /// This node, for endpoints.
    pub place: Place<'a>,
}

impl Surroundings<'_> {
    /// The addresses of the host that ports of it are at: not ::1, as Linux routes nothing to it from elsewhere.
    fn host(&self, ipv6: bool) -> impl Iterator<Item = IpAddr> {
        let of_family = self.host.iter().copied().filter(move |address| address.is_ipv6() == ipv6);
        of_family.filter(|address| *address != IpAddr::V6(Ipv6Addr::LOCALHOST))
    }

    fn node_port_addresses(&self, ipv6: bool) -> impl Iterator<Item = IpAddr> {
        let ranges = &self.settings.node_port_addresses;
        self.host(ipv6).filter(|address| ranges.is_empty() || ranges.iter().any(|range| range.contains(address)))
    }
}

/// Choices that are there already, to be used again: what makes a choice is its backends alone.
struct Choices<'a>(&'a Claimed);

impl Choices<'_> {
    fn of(&self, backends: Vec<Backend>) -> Arc<Choice> {
        let known = self.0.iter().flat_map(|(_, service)| [Some(&service.cluster), service.local.as_ref()]);
        let same = known.flatten().find(|choice| choice.backends() == backends);
        same.cloned().unwrap_or_else(|| Arc::new(Choice::new(backends)))
    }
}

/// The frontends of a service, and what it tells load balancers. `before`: what it came to before, of which is kept what is
/// the same.
pub fn compile<'a>(
    name: &Name,
    service: &Service,
    slices: impl Iterator<Item = &'a Arc<EndpointSlice>> + Clone,
    around: &Surroundings<'_>,
    before: &Claimed,
) -> Compiled {
    let mut compiled = Compiled::default();
    if !around.settings.native || service.metadata.labels.proxy.is_some() {
        return compiled;
    }
    let slices = slices.filter(|slice| slice.metadata.labels.proxy.is_none());
    let mut here = BTreeSet::new();
    for ipv6 in [false, true] {
        // A service is of the families that it has addresses of in the cluster.
        if !service.addresses().any(|address| address.is_ipv6() == ipv6) {
            continue;
        }
        for port in &service.spec.ports {
            let of_family = slices.clone().filter(|slice| slice.is_of(ipv6));
            let unready = service.spec.publish_not_ready_addresses;
            let endpoints = Endpoints::of(port, of_family, unready, &around.place);
            here.extend(endpoints.ready_here());
            let exposed = Exposed { name, service, port, ipv6, endpoints: &endpoints, around };
            exposed.add(&Choices(before), &mut compiled.claimed);
        }
    }
    // Of one service the first kind has it, as kube-proxy's chains are in that order.
    compiled.claimed.sort_by_key(|(frontend, _)| *frontend);
    compiled.claimed.dedup_by(|later, first| later.0 == first.0);
    compiled.health = service.health_port().map(|port| (port, here.len()));
    compiled
}

/// One port of a service, of one family.
struct Exposed<'a> {
    name: &'a Name,
    service: &'a Service,
    port: &'a Port,
    ipv6: bool,
    endpoints: &'a Endpoints<'a>,
    around: &'a Surroundings<'a>,
}

impl Exposed<'_> {
    fn add(&self, choices: &Choices<'_>, claimed: &mut Claimed) {
        let Self { name, service, port, ipv6, endpoints, around } = *self;
        let spec = &service.spec;
        let config = spec.session_affinity_config.client_ip.timeout_seconds;
        let timeout = config.map_or(AFFINITY, |seconds| Duration::from_secs(seconds.into()));
        let (internal, external) = (service.is_internal_local(), service.is_external_local());
        let local = (internal || external).then(|| choices.of(endpoints.local()));
        let made = |kind, is_local: bool, source_ranges: &[IpNet]| service::Service {
            name: full_name(name, port).into(),
            kind,
            cluster: choices.of(endpoints.cluster(&around.place)),
            local: local.clone().filter(|_| is_local),
            affinity: (spec.session_affinity == Affinity::ClientIP).then_some(timeout),
            source_ranges: source_ranges.into(),
        };
        let in_cluster = Arc::new(made(Kind::ClusterIp, internal, &[]));
        let with = |kind, ranges: &[IpNet]| {
            Arc::new(service::Service {
                kind,
                source_ranges: ranges.into(),
                local: local.clone().filter(|_| external),
                ..(*in_cluster).clone()
            })
        };
        let mut claim = |addresses: &mut dyn Iterator<Item = IpAddr>, number: u16, service: &Arc<service::Service>| {
            let of_family = addresses.filter(|address| address.is_ipv6() == ipv6);
            let protocol = port.protocol.number();
            claimed.extend(of_family.map(|address| (Frontend { address, protocol, port: number }, service.clone())));
        };
        claim(&mut service.addresses(), port.port, &in_cluster);
        claim(&mut spec.external_ips.iter().copied(), port.port, &with(Kind::ExternalIp, &[]));
        let ingress = service.status.load_balancer.ingress.iter().filter(|ingress| ingress.mode == IpMode::Vip);
        let balancer = with(Kind::LoadBalancer, &spec.load_balancer_source_ranges);
        claim(&mut ingress.filter_map(|ingress| ingress.ip), port.port, &balancer);
        if port.node_port != 0 {
            let node_port = with(Kind::NodePort, &[]);
            claim(&mut around.node_port_addresses(ipv6), port.node_port, &node_port);
        }
    }
}

/// `namespace/service:port`.
pub fn full_name(name: &Name, port: &Port) -> String {
    if port.name.is_empty() { format!("{name}:{}", port.port) } else { format!("{name}:{}", port.name) }
}

/// The frontends of a pod's host ports; and those of its host ports that lead nowhere, in words.
pub fn host_ports(pod: &Endpoint, around: &Surroundings<'_>) -> (Claimed, Vec<String>) {
    let (mut claimed, mut stray) = (Claimed::new(), Vec::new());
    let name: Arc<str> = pod.name().into();
    for mapping in &pod.host_ports {
        let backend = |ipv6| pod.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6);
        let one = mapping.address.filter(|address| !address.is_unspecified());
        let families: &[bool] = match mapping.address {
            None => &[false, true],
            Some(address) if address.is_ipv6() => &[true],
            Some(_) => &[false],
        };
        let before = claimed.len();
        for &ipv6 in families {
            let Some(address) = backend(ipv6) else { continue };
            let choice = Choice::new([Backend { address, port: mapping.target }]);
            let service = Arc::new(service::Service {
                name: name.clone(),
                kind: Kind::HostPort,
                cluster: Arc::new(choice),
                local: None,
                affinity: None,
                source_ranges: [].into(),
            });
            // Somebody else's address would be taken from them, for all pods of this node.
            let is_loopback = one.is_some_and(|address| address.is_ipv4() && address.is_loopback());
            let lone = one.filter(|_| is_loopback);
            let addresses = around.host(ipv6).filter(|address| one.is_none_or(|one| one == *address)).chain(lone);
            claimed.extend(addresses.map(|address| {
                (Frontend { address, protocol: mapping.protocol, port: mapping.port }, service.clone())
            }));
        }
        if claimed.len() == before {
            let at = mapping.address.map_or_else(|| "all addresses".into(), |address| address.to_string());
            let why = "the host has no such address, or the pod none of the family";
            stray.push(format!("{name}: host port {} at {at} leads nowhere: {why}", mapping.port));
        }
    }
    claimed.sort_by_key(|(frontend, _)| *frontend);
    claimed.dedup_by(|later, first| later.0 == first.0);
    (claimed, stray)
}
