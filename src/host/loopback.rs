//! What the kernel has to believe of packets that come in through `lo`.
//!
//! A packet that the host has sent to itself knows its way. One that a program brings to `lo` (`io::redirect`: answers of
//! the forwarder to the host's own connections to a node port or a host port) does not, and is judged as if it came from a
//! wire: a source that is one of the host's own needs `accept_local`, a loopback address `route_localnet`
//! (`fib_validate_source` and `ip_route_input_slow`, `net/ipv4`). Both are set for `lo` alone, where nothing else comes in
//! that has to be judged. IPv6 has no such settings, and needs none.
//!
//! They are never taken back: nobody knows who else has come to need them.

use super::HostError;

const SETTINGS: [&str; 2] = ["accept_local", "route_localnet"];

/// Has the host receive what comes through `lo` from its own addresses. Needed when something is claimed that the host
/// itself may connect to.
///
/// # Errors
/// [`HostError::Loopback`].
pub fn allow_own_sources() -> Result<(), HostError> {
    for setting in SETTINGS {
        let path = format!("/proc/sys/net/ipv4/conf/lo/{setting}");
        let failed = |source| HostError::Loopback { setting, source };
        if std::fs::read_to_string(&path).map_err(failed)?.trim() == "0" {
            std::fs::write(&path, "1").map_err(failed)?;
            tracing::info!("set net.ipv4.conf.lo.{setting}=1: the host reaches node ports and host ports of its own");
        }
    }
    Ok(())
}
