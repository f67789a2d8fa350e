//! The virtio header in front of a TAP frame (`struct virtio_net_hdr`, `include/uapi/linux/virtio_net.h`).
//!
//! ```text
//!  | flags | gso_type | hdr_len (2) | gso_size (2) | csum_start (2) | csum_offset (2) |   host byte order
//! ```
//! `hdr_len` is only a hint: on the forwarding path the kernel writes the length of its linear buffer. It is
//! ignored on the way in. Offsets are counted from the frame's first byte there, from the L3 header in [`Offload`].

use super::header::Malformed;

/// Its length.
pub const LENGTH: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a super-frame has to be cut: `virtio_net_hdr.gso_type` (`include/uapi/linux/virtio_net.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// Not a super-frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of `gso_size` payload each (`VIRTIO_NET_HDR_GSO_UDP_L4`), either family.
    Udp,
}

/// A transport checksum that holds only the pseudo-header's sum (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte to sum, counted from the L3 header.
    pub start: u16,
    /// Where the sum belongs, counted from `start`.
    pub offset: u16,
}

/// What a virtio header says of a packet, with offsets counted from the L3 header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// How to cut it.
    pub gso: Gso,
    /// Payload bytes per segment; 0 unless `gso` is set.
    pub gso_size: u16,
    /// The first segment alone carries CWR (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
    /// Set: the transport checksum is still to be completed.
    pub partial: Option<PartialChecksum>,
    /// Somebody we trust has checked the transport checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub valid: bool,
}

/// Reads a header whose frame has `network` bytes in front of its L3 header.
///
/// # Errors
/// [`Malformed`] for a kind of super-frame that was never negotiated, or a checksum that starts before the L3
/// header.
#[inline]
pub fn parse(header: &[u8; LENGTH], network: usize) -> Result<Offload, Malformed> {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let gso = match header[1] & !GSO_ECN {
        0 => Gso::None,
        GSO_TCPV4 => Gso::Tcp4,
        GSO_TCPV6 => Gso::Tcp6,
        GSO_UDP_L4 => Gso::Udp,
        _ => return Err(Malformed),
    };
    let partial = if header[0] & NEEDS_CSUM != 0 {
        let link = u16::try_from(network).map_err(|_| Malformed)?;
        Some(PartialChecksum { start: field(6).checked_sub(link).ok_or(Malformed)?, offset: field(8) })
    } else {
        None
    };
    Ok(Offload {
        gso,
        gso_size: if gso == Gso::None { 0 } else { field(4) },
        ecn: gso != Gso::None && header[1] & GSO_ECN != 0,
        partial,
        valid: header[0] & DATA_VALID != 0,
    })
}

/// Writes a header for a frame with `network` bytes in front of its L3 header, whose headers all together are
/// `headers` bytes long (0: not known; needed for super-frames only).
#[inline]
pub fn emit(offload: &Offload, network: usize, headers: u16) -> [u8; LENGTH] {
    let mut header = [0; LENGTH];
    header[0] = match (offload.partial, offload.valid) {
        (Some(_), _) => NEEDS_CSUM,
        (None, true) => DATA_VALID,
        (None, false) => 0,
    };
    header[1] = match offload.gso {
        Gso::None => 0,
        Gso::Tcp4 => GSO_TCPV4,
        Gso::Tcp6 => GSO_TCPV6,
        Gso::Udp => GSO_UDP_L4,
    };
    if offload.gso != Gso::None {
        header[1] |= if offload.ecn { GSO_ECN } else { 0 };
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&offload.gso_size.to_ne_bytes());
    }
    if let Some(partial) = offload.partial {
        let start = usize::from(partial.start) + network;
        let start = u16::try_from(start).expect("validated offsets lie within a packet of 64 KB less its link header");
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..].copy_from_slice(&partial.offset.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_again() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            for partial in [None, Some(PartialChecksum { start: 20, offset: 16 })] {
                let super_frame = gso != Gso::None;
                let offload = Offload {
                    gso,
                    gso_size: if super_frame { 1440 } else { 0 },
                    ecn: super_frame,
                    partial,
                    valid: partial.is_none(),
                };
                assert_eq!(parse(&emit(&offload, 14, 54), 14), Ok(offload));
            }
        }
    }

    #[test]
    fn offsets_before_the_l3_header_and_unknown_kinds_are_malformed() {
        let mut header = [0; LENGTH];
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&13u16.to_ne_bytes());
        assert_eq!(parse(&header, 14), Err(Malformed));
        assert_eq!(parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0], 14), Err(Malformed));
    }
}
