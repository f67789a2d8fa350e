//! Many datagrams in one system call (`sendmmsg(2)`, `recvmmsg(2)`), without allocating.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::packet;

/// The most messages that one call takes; what a caller offers beyond is left alone.
pub const MAX_MESSAGES: usize = 64;

/// A datagram in two pieces: headers made for it, and payload where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What comes first.
    pub head: &'a [u8],
    /// What follows; may be empty.
    pub body: &'a [u8],
    /// Where to.
    pub to: Ipv4Addr,
}

/// A frame for a packet socket (see [`super::packet`]), in three pieces, each of which may be empty.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// A virtio header, then the frame.
    pub pieces: [&'a [u8]; 3],
    /// Index of the device that it leaves through.
    pub interface: u32,
    /// The EtherType that the kernel is to take it for.
    pub protocol: u16,
}

/// Sends messages in order, without waiting, and tells how many went.
///
/// # Errors
/// That of the first message when not even it went. Fewer than all is no error: calling again with the rest tells
/// why. An error that an earlier packet left on the socket (see [`super::raw`]) fails one call, too.
pub fn sendmmsg<'a>(socket: impl AsFd, messages: impl IntoIterator<Item = Message<'a>>) -> io::Result<usize> {
    let messages = messages.into_iter().map(|message| {
        // SAFETY: `sockaddr_in` is plain data, for which all zeroes is a valid value.
        let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        to.sin_family = libc::AF_INET as libc::sa_family_t;
        to.sin_addr.s_addr = u32::from_ne_bytes(message.to.octets());
        (to, [message.head, message.body])
    });
    send(socket.as_fd(), messages)
}

/// Sends frames through a packet socket, as [`sendmmsg`] does messages.
///
/// # Errors
/// As [`sendmmsg`]. `EINVAL` for a virtio header that the kernel refuses, `EMSGSIZE` for a frame longer than the device
/// takes, `ENETDOWN` and `ENXIO` when the device is down or gone, `ENOBUFS` when it drops the frame.
pub fn send_frames<'a>(socket: impl AsFd, frames: impl IntoIterator<Item = Frame<'a>>) -> io::Result<usize> {
    let frames = frames.into_iter().map(|frame| (packet::address(frame.interface, frame.protocol), frame.pieces));
    send(socket.as_fd(), frames)
}

/// Sends what consists of an address (any `sockaddr_…`) and some pieces.
fn send<'a, N: Copy, const PIECES: usize>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = (N, [&'a [u8]; PIECES])>,
) -> io::Result<usize> {
    let mut names = [const { MaybeUninit::<N>::uninit() }; MAX_MESSAGES];
    let mut pieces = [const { MaybeUninit::<[libc::iovec; PIECES]>::uninit() }; MAX_MESSAGES];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let mut count = 0;
    for ((((to, from), name), pieces), header) in messages.zip(&mut names).zip(&mut pieces).zip(&mut headers) {
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
        one.msg_hdr.msg_name = std::ptr::from_mut(name.write(to)).cast();
        one.msg_hdr.msg_namelen = size_of::<N>() as libc::socklen_t;
        one.msg_hdr.msg_iov = pieces.write(from.map(read_only)).as_mut_ptr();
        one.msg_hdr.msg_iovlen = PIECES as _;
        header.write(one);
        count += 1;
    }
    let fd = socket.as_raw_fd();
    // SAFETY: the first `count` headers are written; each points to a name and its pieces in arrays that outlive the
    // call, and the pieces to slices that are borrowed for all of it. The kernel reads the slices and writes only
    // `msg_len`.
    let sent =
        unsafe { libc::sendmmsg(fd, headers.as_mut_ptr().cast(), count as libc::c_uint, libc::MSG_DONTWAIT as _) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Receives datagrams without waiting, one into each buffer in order, and tells how many came. Their lengths are
/// written to `lengths`, which also bounds how many are taken; a length beyond its buffer's is that of a datagram
/// which was cut.
///
/// Fewer than there was room for means that the socket was empty then, so that the next arrival is an edge to
/// whoever polls it, or that an error is pending, which the next call returns.
///
/// # Errors
/// `WouldBlock` when nothing is there, and whatever an earlier packet left on the socket (see [`super::raw`]).
pub fn recvmmsg<'a>(
    socket: impl AsFd,
    buffers: impl IntoIterator<Item = &'a mut [u8]>,
    lengths: &mut [usize],
) -> io::Result<usize> {
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MAX_MESSAGES];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_MESSAGES];
    let mut count = 0;
    let slots = pieces.iter_mut().zip(&mut headers).take(lengths.len());
    for ((piece, header), buffer) in slots.zip(buffers) {
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
        one.msg_hdr.msg_iov = piece.write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
        one.msg_hdr.msg_iovlen = 1;
        header.write(one);
        count += 1;
    }
    let fd = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the first `count` headers are written; each points to a piece in an array that outlives the call, and
    // the pieces to distinct slices that are borrowed mutably for all of it.
    let received = unsafe {
        libc::recvmmsg(fd, headers.as_mut_ptr().cast(), count as libc::c_uint, flags as _, std::ptr::null_mut())
    };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    let received = received as usize;
    for (length, header) in lengths.iter_mut().zip(&headers[..received]) {
        // SAFETY: the kernel reports at most `count` messages, and the first `count` headers are written.
        *length = unsafe { header.assume_init_ref() }.msg_len as usize;
    }
    Ok(received)
}

fn read_only(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn received_is_what_was_sent_and_too_long_is_told() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        sender.connect(receiver.local_addr().expect("bound")).expect("connected");
        let mut lengths = [0; 3];
        let mut buffers = [[0; 8]; 3];
        let empty = recvmmsg(&receiver, buffers.iter_mut().map(|b| &mut b[..]), &mut lengths);
        assert_eq!(empty.expect_err("nothing sent").kind(), io::ErrorKind::WouldBlock);

        sender.send(b"one").expect("sent");
        sender.send(b"longer than eight").expect("sent");
        let received = recvmmsg(&receiver, buffers.iter_mut().map(|b| &mut b[..]), &mut lengths).expect("received");
        assert_eq!(received, 2);
        assert_eq!(lengths[..2], [3, 17]);
        assert_eq!(&buffers[0][..3], b"one");
        assert_eq!(&buffers[1], b"longer t");
    }

    #[test]
    fn lengths_bound_how_many_are_taken() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
        let to = receiver.local_addr().expect("bound");
        for _ in 0..3 {
            sender.send_to(b"x", to).expect("sent");
        }
        let mut lengths = [0; 2];
        let mut buffers = [[0; 8]; 3];
        let received = recvmmsg(&receiver, buffers.iter_mut().map(|b| &mut b[..]), &mut lengths).expect("received");
        assert_eq!(received, 2);
    }
}
