//! Queueing disciplines: `RTM_NEWQDISC` (rtnetlink(7), tc(8)).

use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::{Link, Netlink, NetlinkError};

const RTM_NEWQDISC: u16 = 36;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

impl Netlink {
    /// Has a link hand packets to its driver at once. While a link is down nothing else is made for it.
    ///
    /// A TAP queues in its own rings and never tells the stack to wait, so a discipline above them does nothing; but a
    /// multi-queue TAP has room for 256 queues, and the kernel makes a default one for each: 6 MB a pod.
    ///
    /// # Errors
    /// [`NetlinkError`]; a kernel without traffic control has nothing to replace.
    pub fn set_noqueue(&mut self, link: &Link) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(i32::try_from(link.index).unwrap_or_default());
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("noqueue".into()));
        let action = || format!("set the queueing discipline of {}", link.name);
        self.change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &message, action)
    }
}
