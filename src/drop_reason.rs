//! Why a packet goes no further: the one list of everything that can go wrong with one.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $hint:literal;)+) => {
        /// Why a packet was not forwarded. Counted where it is decided once, by the worker, and nowhere else.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// Every reason, in the order of the packet's way.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The stable name that counters, metrics and `tapirctl drops` print.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What an operator can do about it, in one sentence.
            pub const fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint,)+ }
            }
        }
    };
}

reasons! {
    /// A frame shorter than an Ethernet header, or than its port's device could ever deliver.
    MalformedFrame = "malformed_frame", "The sender builds frames by hand; look at it with tcpdump in the pod.";
    /// Offload metadata that does not fit the headers (virtio header).
    BadOffload = "bad_offload", "The sender uses a packet socket with a forged virtio header.";
    /// An IEEE 802.1Q or 802.1ad tag.
    VlanTagged = "vlan_tagged", "Pods have no VLANs; remove the VLAN interface in the pod.";
    /// Neither IPv4, IPv6 nor ARP.
    NotIp = "not_ip", "tapir routes IP only.";
    /// Unicast to a MAC that is not the gateway's, or IP unicast in a group frame.
    NotForGateway = "not_for_gateway", "Every neighbour of a pod is ee:ee:ee:ee:ee:ee; flush the pod's neighbour table.";
    /// The Ethernet source is not the MAC that the pod was given.
    SpoofedMac = "spoofed_mac", "Restore the pod's MAC, or add the pod again with the MAC it should have.";
    /// An ARP packet that no host sends, or with somebody else's address as its sender.
    BadArp = "bad_arp", "The pod claims an address it was not given.";
    /// A neighbour message that asks nothing of the gateway.
    UnansweredNeighbor = "unanswered_neighbor", "Harmless: a question about an address that is not the gateway's.";
    /// IP version, header length or total length that no sender should produce.
    MalformedIp = "malformed_ip", "The sender builds packets by hand, or something on the way cuts them.";
    /// The IPv4 header checksum is wrong.
    BadChecksum = "bad_checksum", "Damaged on the way, or forged.";
    /// Loose or strict source routing (RFC 7126 §4.3, RFC 5095).
    SourceRouted = "source_routed", "Source routing is refused everywhere; stop asking for it.";
    /// A source or destination that no router carries: loopback, unspecified, multicast source, 240/4.
    Martian = "martian", "Look at the sender's routes: such an address must never leave a host.";
    /// Multicast or broadcast destination.
    Multicast = "multicast", "Harmless where hosts announce themselves; tapir carries unicast only.";
    /// An IPv6 link-local address beyond the gateway's own (RFC 4291 §2.5.6).
    LinkLocal = "link_local", "Link-local addresses end at the gateway.";
    /// For the gateway's own address, and not a ping; answered with port unreachable.
    ToGateway = "to_gateway", "The gateway answers ping and nothing else.";
    /// A pod sent from an address it does not own.
    SpoofedSource = "spoofed_source", "The pod sends from an address it was not given.";
    /// Tunnelled traffic (protocol 4 or 41, or UDP to port 5555 of a node, or of anybody on its link) from a pod.
    TunnelFromPod = "tunnel_from_pod", "Only nodes tunnel to nodes; a pod that does is refused.";
    /// The outer source is no configured peer.
    UnknownPeer = "unknown_peer", "Add the node as a peer, or find out who sends protocol 4 or 41, or UDP 5555, to this node.";
    /// The inner source does not belong to the peer that sent it.
    SpoofedTunnelSource = "spoofed_tunnel_source", "Compare this node's peer.pods with that node's node_cidrs.";
    /// An outer header which is not RFC 2003's, of the wrong inner family, or of UDP with another port or length.
    MalformedTunnel = "malformed_tunnel", "The peer does not speak plain IPIP.";
    /// Congestion experienced on the underlay, and the inner packet can't carry the mark (RFC 6040 §4.2).
    EcnMismatch = "ecn_mismatch", "The underlay marks packets as congested; it is a loss signal.";
    /// It would leave by the tunnel or the host interface it came from, or came through the tunnel for somebody who
    /// is not here.
    Loop = "loop", "Two nodes disagree about who owns an address; compare peer.pods and node_cidrs.";
    /// From the host to another node's pod, with a source that this node does not own.
    ForeignSource = "foreign_source", "Bind to the address of tapir0, or leave the source to the kernel.";
    /// No route, or a route that says so: inside the pools, but nobody has the address.
    NoRoute = "no_route", "Nobody has the destination: is the pod gone, or a peer missing from the config?";
    /// A service without endpoints, or an address of `network.service_cidrs` that is no service's; answered with port unreachable.
    NoEndpoint = "no_endpoint", "tapirctl services: the service has no ready endpoint, or there is none at that address and port.";
    /// A service with traffic policy Local that has endpoints, but none on this node.
    NoLocalEndpoint = "no_local_endpoint", "The service's traffic policy is Local, and none of its endpoints is on this node.";
    /// A client that `loadBalancerSourceRanges` does not name.
    SourceRange = "source_range", "The service's loadBalancerSourceRanges don't have the client.";
    /// A later fragment of a packet to a service, or from behind a translation, whose first was not seen.
    UntrackedFragment = "untracked_fragment", "Fragments that overtake the first can't be translated; let the sender keep to the path's MTU.";
    /// For the node's own translated sources, and no connection of anybody's.
    NoConnection = "no_connection", "Somebody outside sends to a port that is reserved for translation, or a connection was forgotten.";
    /// A protocol other than TCP, UDP, SCTP and ICMP echo, whose source would have to be translated.
    Untranslatable = "untranslatable", "Only TCP, UDP, SCTP and ICMP echo leave the pools where sources are translated.";
    /// TCP to a backend that is no endpoint of its service any more; answered with a reset (`network.service_reset`).
    EndpointGone = "endpoint_gone", "The endpoint was removed from its service; the client connects again.";
    /// The pod, or whoever else, has as many connections as it may.
    FlowLimit = "flow_limit", "tapirctl flows --pod tells what the pod has open; network.flows_per_pod is the limit.";
    /// The table of connections is full.
    FlowTableFull = "flow_table_full", "Raise network.flows.";
    /// No port is left to translate the source to.
    NoPort = "no_port", "Widen network.nat_ports, or use fewer connections to one destination.";
    /// The pod sends or gets more than its bandwidth.
    Bandwidth = "bandwidth", "The pod's bandwidth limit; the sender should slow down.";
    /// TTL or hop limit used up; answered with Time Exceeded.
    TtlExpired = "ttl_expired", "Normal under traceroute; otherwise a routing loop.";
    /// Larger than the way on, and may not be fragmented; answered with the MTU.
    TooBig = "too_big", "Normal while a sender learns the MTU; steady: ICMP does not reach it.";
    /// An ICMP error that tapir made could not be delivered.
    UndeliverableError = "undeliverable_error", "The sender of the faulty packet can't be reached.";
    /// The egress port's device is gone, down or not open yet.
    PortDown = "port_down", "Is the pod's interface down? It may be going away.";
    /// The device or its queue was full.
    EgressFull = "egress_full", "The receiver is slower than the sender.";
    /// The kernel refused the frame.
    EgressRejected = "egress_rejected", "The log names the error; on the tunnel look at the host's OUTPUT firewall.";
}

/// How many reasons there are: the length of a counter array indexed by `reason as usize`.
pub const REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indexes_dense() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REASONS);
        assert!(DropReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
    }
}
