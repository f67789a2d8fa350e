//! Services: addresses that stand for others.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use ipnet::IpNet;

use super::maglev::{Choice, mix};

/// What clients send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A service's address, a node's, or 127.0.0.1.
    pub address: IpAddr,
    /// TCP, UDP or SCTP (IANA).
    pub protocol: u8,
    /// The port there.
    pub port: u16,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// A pod's address, or whatever an endpoint's is.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

/// Why an address stands for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `spec.clusterIPs`: from inside the cluster.
    ClusterIp,
    /// A node's address and `spec.ports[].nodePort`.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// A node's address and the `hostPort` of a pod (CNI `portMappings`).
    HostPort,
}

impl Kind {
    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::HostPort => "HostPort",
        }
    }
}

/// One port of a service at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `namespace/service:port`; of a host port the pod's name.
    pub name: Arc<str>,
    /// Why it is there.
    pub kind: Kind,
    /// Who answers. None: clients are told so.
    pub cluster: Arc<Choice>,
    /// The traffic policy is Local: of those, the ones of this node, which may be none. They are for the clients the policy is
    /// about: all of a cluster IP, those from outside of the others.
    pub local: Option<Arc<Choice>>,
    /// How long a client keeps its backend after its last connection (`sessionAffinity: ClientIP`).
    pub affinity: Option<Duration>,
    /// Who may be a client (`loadBalancerSourceRanges`); empty: anybody.
    pub source_ranges: Arc<[IpNet]>,
}

/// All services, as forwarding sees them.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// By what clients send to.
    pub frontends: HashMap<Frontend, Arc<Service>, FixedState>,
    /// The addresses of those.
    pub addresses: HashSet<IpAddr, FixedState>,
    /// What is for services only: an address of it that is none is refused.
    pub cidrs: Vec<IpNet>,
    /// Counts up with each change of the above. Who has looked at a backend with the same number needn't look again.
    pub epoch: u32,
    /// TCP connections to a backend that is none any more are reset; otherwise they go on as long as it answers.
    pub reset: bool,
}

impl Services {
    /// The service that is found there.
    #[inline]
    pub fn at(&self, frontend: &Frontend) -> Option<&Arc<Service>> {
        self.frontends.get(frontend)
    }

    /// Whether the address stands for others, at some port.
    pub fn stands(&self, address: IpAddr) -> bool {
        self.covers(address) || self.addresses.contains(&address)
    }

    /// Whether the address is for services only.
    #[inline]
    pub fn covers(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(&address))
    }
}

/// The hash of a connection that [`Choice::pick`] takes. The same from any node at any time, as backends are chosen by it.
///
/// Of one client's ports that follow one another it makes multiples of the golden ratio, which spread more evenly than chance.
#[inline]
pub fn connection_hash(client: IpAddr, port: u16, frontend: &Frontend) -> u64 {
    let fold = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            mix((bits >> 64) as u64) ^ bits as u64
        }
    };
    let service = u64::from(frontend.port) << 8 | u64::from(frontend.protocol);
    let base = mix(fold(client) ^ mix(fold(frontend.address) ^ mix(service)));
    base.wrapping_add(u64::from(port).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_services_is_told_from_what_is_not() {
        let service = Service {
            name: "default/s:80".into(),
            kind: Kind::ClusterIp,
            cluster: Arc::default(),
            local: None,
            affinity: None,
            source_ranges: [].into(),
        };
        let frontend = Frontend { address: [10, 96, 0, 1].into(), protocol: 6, port: 80 };
        let services = Services {
            frontends: [(frontend, Arc::new(service))].into_iter().collect(),
            cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            ..Services::default()
        };
        assert!(services.at(&frontend).is_some_and(|service| &*service.name == "default/s:80"));
        for other in [Frontend { port: 81, ..frontend }, Frontend { protocol: 17, ..frontend }] {
            assert!(services.at(&other).is_none());
        }
        for (address, covered) in
            [("10.111.255.255", true), ("10.112.0.0", false), ("fd00:96::ffff", true), ("fd00:97::", false)]
        {
            assert_eq!(services.covers(address.parse().unwrap()), covered, "{address}");
        }
    }

    /// All parts of a connection count, and clients that follow one another don't crowd.
    #[test]
    fn a_hash_depends_on_every_part() {
        let frontend = Frontend { address: [10, 96, 0, 1].into(), protocol: 6, port: 80 };
        let client = IpAddr::from([10, 244, 0, 1]);
        let others = [
            connection_hash([10, 244, 0, 2].into(), 1, &frontend),
            connection_hash(client, 2, &frontend),
            connection_hash(client, 1, &Frontend { address: [10, 96, 0, 2].into(), ..frontend }),
            connection_hash(client, 1, &Frontend { protocol: 17, ..frontend }),
            connection_hash(client, 1, &Frontend { port: 81, ..frontend }),
        ];
        let hash = connection_hash(client, 1, &frontend);
        assert!(others.iter().all(|&other| other != hash), "{others:x?}");
        let choice = Choice::new((1..=5).map(|last| Backend { address: [10, 0, 0, last].into(), port: 1 }));
        let mut shares = HashMap::<Backend, u32>::new();
        for number in 0..50_000_u32 {
            let client = IpAddr::from((0x0af4_0000 + number).to_be_bytes());
            *shares.entry(choice.pick(connection_hash(client, 40_000, &frontend)).unwrap()).or_default() += 1;
        }
        assert!(shares.values().all(|share| (9_500..=10_500).contains(share)), "{shares:?}");
    }
}
