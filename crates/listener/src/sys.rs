//! The only place with `unsafe`: system calls that no dependency of ours wraps.
#![allow(
    unsafe_code,
    reason = "FFI corner: each call has its SAFETY comment and a test on a real socket or process"
)]

#[cfg(unix)]
pub(crate) use self::unix::*;

#[cfg(unix)]
mod unix {
    use std::{
        io,
        os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        sync::atomic::{AtomicBool, Ordering},
    };

    /// Copies what has arrived on a stream socket into `buf` and leaves it there. Never blocks.
    pub(crate) fn peek(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buf` is a live, writable buffer of `buf.len()` bytes for the whole call, the kernel writes at
        // most that many into it, and the borrowed descriptor stays open meanwhile.
        let n = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        // -1 is the only negative return value
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Whether [`take_descriptors`] gave what it has to give.
    static TAKEN: AtomicBool = AtomicBool::new(false);

    /// The open descriptors from a number on, which a parent left open for this process. Once: `None` from then on.
    pub(crate) fn take_descriptors(first: i32, count: usize) -> io::Result<Option<Vec<OwnedFd>>> {
        let last = first.saturating_add(i32::try_from(count).unwrap_or(i32::MAX));
        for fd in first..last {
            // SAFETY: asks for the flags of a number, whatever is behind it; nothing is changed.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
                let error = io::Error::last_os_error();
                return Err(io::Error::new(error.kind(), format!("descriptor {fd} is not open")));
            }
        }
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(None);
        }
        // SAFETY: all of them are open, by the loop above. By the protocol of socket activation (sd_listen_fds(3)), and
        // since its variables name this very process, they were opened for it before it began and nothing else in it
        // owns them; they are handed out here once in the life of the process.
        Ok(Some((first..last).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()))
    }

    /// Sets an option whose value is an int.
    pub(crate) fn set_int(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: `value` is a live int for the whole call, its size is given, and the kernel only reads it; the
        // borrowed descriptor stays open meanwhile.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads it back.
    pub(crate) fn get_int(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<i32> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` is a live, writable int of `len` bytes for the whole call, and the kernel writes at most
        // that many; the borrowed descriptor stays open meanwhile.
        let done = unsafe {
            libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len)
        };
        if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }

    /// How many connections a listening TCP socket queues at most (tcp_diag: the kernel puts it into a field that
    /// has no other use there), and how many are queued.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn backlog(listener: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
        // SAFETY: all-zero bytes are a valid tcp_info, which is made of integers only.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: `info` is live and writable for `len` bytes for the whole call, and the kernel writes at most that
        // many; the borrowed descriptor stays open meanwhile.
        let done = unsafe {
            libc::getsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut info).cast(),
                &raw mut len,
            )
        };
        if done == 0 { Ok((info.tcpi_sacked, info.tcpi_unacked)) } else { Err(io::Error::last_os_error()) }
    }

    /// `RLIMIT_NOFILE` as (soft, hard); no limit is `u64::MAX`.
    #[allow(clippy::unnecessary_cast, reason = "rlim_t is not u64 on every system")]
    pub(crate) fn descriptor_limit() -> io::Result<(u64, u64)> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is a valid rlimit that the call fills and does not keep.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let plain = |n: libc::rlim_t| if n == libc::RLIM_INFINITY { u64::MAX } else { n as u64 };
        Ok((plain(limit.rlim_cur), plain(limit.rlim_max)))
    }

    /// Sets the soft `RLIMIT_NOFILE` and keeps the hard one.
    #[allow(clippy::unnecessary_cast, reason = "rlim_t is not u64 on every system")]
    pub(crate) fn set_soft_descriptor_limit(soft: u64) -> io::Result<()> {
        let (_, hard) = descriptor_limit()?;
        let raw = |n: u64| if n == u64::MAX { libc::RLIM_INFINITY } else { n as libc::rlim_t };
        let limit = libc::rlimit { rlim_cur: raw(soft), rlim_max: raw(hard) };
        // SAFETY: `limit` is a valid rlimit that the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Makes the reuse-port group of `socket` choose by one byte of the QUIC destination connection id: the socket
    /// whose place in the group is that byte modulo `group`.
    ///
    /// The layout used is the one that no version of QUIC may change (RFC 8999): the id begins at offset 6 in a
    /// packet with a long header (section 5.1, the first bit is set) and at offset 1 with a short one (section 5.2).
    /// A client chooses the id of its first packets, of at least 8 bytes (RFC 9000 section 7.2): where it is too short for the byte, another
    /// of it chooses, so that all of them go to one socket. What follows the id differs from packet to packet.
    /// A datagram too short for it goes to the first socket. A value without a socket falls back to the kernel's
    /// hash.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn steer_by_cid_byte(socket: BorrowedFd<'_>, cid_byte: u8, group: u32) -> io::Result<()> {
        /// A byte that every id of a client has.
        const FALLBACK: u32 = 3;
        let byte = u32::from(cid_byte);
        let load = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        let mut program = [
            step(load, 0, 0, 0),
            // long header: go on; short header: to the last load
            step(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 6, 0x80),
            // the length of the id
            step(load, 0, 0, 5),
            step(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 2, byte),
            step(load, 0, 0, 6 + byte),
            step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 3),
            step(load, 0, 0, 6 + FALLBACK),
            step(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
            step(load, 0, 0, 1 + byte),
            step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, group),
            step(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        ];
        let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: `header` describes `program`, both live for the whole call; the kernel copies and verifies the
        // program (a `group` of 0 would be refused as a division by zero) and keeps no pointer to it.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const header).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn step(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k }
    }
}
