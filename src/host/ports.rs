//! Ports of the host's own sockets.

use std::fs;
use std::io;
use std::ops::RangeInclusive;

/// Where the kernel lists sockets, of this network namespace.
const LISTS: [&str; 4] = [
    "/proc/thread-self/net/tcp",
    "/proc/thread-self/net/tcp6",
    "/proc/thread-self/net/udp",
    "/proc/thread-self/net/udp6",
];
/// Ports that the kernel does not choose by itself.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const CHOSEN: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Those of the range that some socket of the host has, sorted.
///
/// # Errors
/// When the kernel's lists can't be read. A family that it doesn't have has no sockets.
pub fn held(range: &RangeInclusive<u16>) -> io::Result<Vec<u16>> {
    let mut held = Vec::new();
    for list in LISTS {
        match fs::read_to_string(list) {
            Ok(text) => held.extend(text.lines().skip(1).filter_map(local_port).filter(|port| range.contains(port))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    held.sort_unstable();
    held.dedup();
    Ok(held)
}

/// Keeps the kernel from choosing ports of the range for sockets that ask for any. True when it had to be told.
///
/// # Errors
/// Those of reading and writing the settings.
pub fn reserve(range: &RangeInclusive<u16>) -> io::Result<bool> {
    let chosen = fs::read_to_string(CHOSEN)?;
    let mut ends = chosen.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else { return Ok(false) };
    if last < *range.start() || *range.end() < first {
        return Ok(false);
    }
    let before = fs::read_to_string(RESERVED)?;
    let wanted = format!("{}-{}", range.start(), range.end());
    if before.trim().split(',').any(|one| one == wanted) {
        return Ok(false);
    }
    let all = if before.trim().is_empty() { wanted } else { format!("{},{wanted}", before.trim()) };
    fs::write(RESERVED, all)?;
    Ok(true)
}

/// The second column: address and port, in hexadecimal.
fn local_port(line: &str) -> Option<u16> {
    let local = line.split_whitespace().nth(1)?;
    u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_local_port() {
        let line = "   0: 0100007F:EE48 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        assert_eq!(local_port(line), Some(61_000));
        assert_eq!(local_port("  sl  local_address"), None);
    }

    #[test]
    fn a_socket_of_ours_is_found() {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
        let port = socket.local_addr().expect("bound").port();
        assert_eq!(held(&(port..=port)).expect("lists"), [port]);
        drop(socket);
    }
}
