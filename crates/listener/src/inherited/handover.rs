//! Hands sockets over to another process (`SCM_RIGHTS`, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

use super::{InheritError, InheritedSocket};

/// How many sockets can be handed over at once; the system takes 253 in one message.
pub const MOST_HANDED_OVER: usize = 250;

const MAGIC: [u8; 6] = *b"PCSOCK";
const VERSION: u8 = 1;
const HEAD: usize = 12;
const DONE: u8 = 0x06;
/// Room for one more than is taken, so that too many are seen.
const SPACE: usize = rustix::cmsg_space!(ScmRights(253));

/// Sends duplicates of sockets with their names to the process at the other end, and waits until it has them. After that
/// both have them: connections are kept when this one closes its own.
///
/// # Errors
/// As [`send_descriptors`].
pub async fn send_sockets(
    stream: &mut UnixStream,
    sockets: &[InheritedSocket],
    deadline: Duration,
) -> Result<(), InheritError> {
    let named: Vec<_> = sockets.iter().map(|socket| (socket.name.as_str(), socket.as_fd())).collect();
    send_descriptors(stream, &named, deadline).await
}

/// The same for descriptors of any kind.
///
/// # Errors
/// There are too many, the other process answers something else or not in time, or the system refuses; this process
/// goes on with its own as before. Dropping the future may leave them with both.
pub async fn send_descriptors(
    stream: &mut UnixStream,
    descriptors: &[(&str, BorrowedFd<'_>)],
    deadline: Duration,
) -> Result<(), InheritError> {
    let too_long = descriptors.iter().any(|(name, _)| name.len() > 255);
    if descriptors.is_empty() || descriptors.len() > MOST_HANDED_OVER || too_long {
        return Err(InheritError::TooMany);
    }
    let names: Vec<u8> = descriptors
        .iter()
        .flat_map(|(name, _)| [&[name.len() as u8][..], name.as_bytes()].concat())
        .collect();
    let mut head = [0; HEAD];
    head[..6].copy_from_slice(&MAGIC);
    head[6] = VERSION;
    head[7] = descriptors.len() as u8;
    head[8..].copy_from_slice(&u32::try_from(names.len()).unwrap_or(u32::MAX).to_be_bytes());
    let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();

    let send = async {
        stream
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); SPACE];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let sent = sendmsg(&*stream, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
                // so few bytes are sent whole or not at all
                if sent == HEAD { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            })
            .await?;
        stream.write_all(&names).await?;
        let mut answer = [0];
        stream.read_exact(&mut answer).await?;
        if answer == [DONE] { Ok(()) } else { Err(InheritError::Protocol("no acknowledgement")) }
    };
    tokio::time::timeout(deadline, send).await.map_err(|_| InheritError::Timeout(deadline))?
}

/// Receives what [`send_sockets`] sends, and tells the other process that it may let go.
///
/// # Errors
/// Something else came, or nothing in time, or a descriptor is no socket to listen on. What had come is closed then.
pub async fn receive_sockets(
    stream: &mut UnixStream,
    deadline: Duration,
) -> Result<Vec<InheritedSocket>, InheritError> {
    let of = |(name, fd): (String, OwnedFd)| InheritedSocket::from_fd(name, fd);
    receive(stream, deadline, |named| named.into_iter().map(of).collect()).await
}

/// Receives what [`send_descriptors`] sends, and tells the other process that it may let go.
///
/// # Errors
/// Something else came, or nothing in time. What had come is closed then.
pub async fn receive_descriptors(
    stream: &mut UnixStream,
    deadline: Duration,
) -> Result<Vec<(String, OwnedFd)>, InheritError> {
    receive(stream, deadline, Ok).await
}

/// `take` looks at what came, before it is acknowledged.
async fn receive<T>(
    stream: &mut UnixStream,
    deadline: Duration,
    take: impl FnOnce(Vec<(String, OwnedFd)>) -> Result<T, InheritError>,
) -> Result<T, InheritError> {
    let receive = async {
        let (head, fds) = stream.async_io(Interest::READABLE, || receive_head(stream.as_fd())).await?;
        if head[..6] != MAGIC {
            return Err(InheritError::Protocol("it does not begin as it should"));
        }
        if head[6] != VERSION {
            return Err(InheritError::Protocol("it is of another version"));
        }
        let count = usize::from(head[7]);
        if count == 0 || count > MOST_HANDED_OVER || fds.len() != count {
            return Err(InheritError::Protocol("it has not as many descriptors as it says"));
        }
        let len = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if len > count * 256 {
            return Err(InheritError::Protocol("its names are too long"));
        }
        let mut names = vec![0; len];
        stream.read_exact(&mut names).await?;
        let mut rest = &names[..];
        let mut named = Vec::with_capacity(count);
        for fd in fds {
            let name = rest.split_first().and_then(|(len, after)| after.split_at_checked(usize::from(*len)));
            let (name, after) = name.ok_or(InheritError::Protocol("a name is not whole"))?;
            let name =
                std::str::from_utf8(name).map_err(|_| InheritError::Protocol("a name is not UTF-8"))?;
            named.push((name.to_owned(), fd));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(InheritError::Protocol("it has more names than descriptors"));
        }
        let taken = take(named)?;
        stream.write_all(&[DONE]).await?;
        Ok(taken)
    };
    tokio::time::timeout(deadline, receive).await.map_err(|_| InheritError::Timeout(deadline))?
}

fn receive_head(stream: BorrowedFd<'_>) -> io::Result<([u8; HEAD], Vec<OwnedFd>)> {
    let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut head = [0; HEAD];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    // owned at once, so that they are closed whatever follows
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(wrong("more descriptors came than fit, or than this process may open"));
    }
    if received.bytes != HEAD {
        return Err(wrong("the other process sent no sockets"));
    }
    Ok((head, fds))
}
