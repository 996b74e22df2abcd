//! Who has a port: found in `/proc`, and only after the system has refused it.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::plan::Protocol;

/// More are not listed: one is enough to act on.
const MOST: usize = 4;

/// A process that has a port, as far as this process may see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its id; `None` if it is not visible to this process.
    pub pid: Option<u32>,
    /// Its name, as `ps` shows it.
    pub program: Option<String>,
    /// The user that opened the socket: a name, or the number where it has none.
    pub user: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The address it has, which may be a wider one than was wanted.
    pub address: SocketAddr,
    /// Whether it is a connection that happens to use the port, not a listener.
    pub connection: bool,
    /// Whether it is this very process.
    pub this_process: bool,
    /// Whether it listens on `[::]` and stands in the way of an IPv4 address.
    pub dual_stack: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.program) {
            (Some(pid), _) if self.this_process => write!(f, "this process itself (pid {pid}")?,
            (Some(pid), Some(program)) => write!(f, "{program} (pid {pid}, user {}", self.user)?,
            (Some(pid), None) => write!(f, "pid {pid} (user {}", self.user)?,
            (None, _) => write!(f, "a process that is not visible (user {}", self.user)?,
        }
        let how = if self.connection { "with a connection from" } else { "on" };
        let family = match self.address {
            SocketAddr::V4(_) => "IPv4",
            SocketAddr::V6(_) if self.dual_stack => "IPv6, serving IPv4 too",
            SocketAddr::V6(_) => "IPv6",
        };
        write!(f, ") {how} {} {} ({family})", self.protocol, self.address)
    }
}

/// Those who stand in the way of `wanted`. Empty where it can't be known.
pub(crate) fn find(protocol: Protocol, wanted: SocketAddr) -> Vec<Holder> {
    if cfg!(target_os = "linux") {
        find_in(Path::new("/proc"), Path::new("/etc/passwd"), protocol, wanted)
    } else {
        Vec::new()
    }
}

/// Whether this process sees the descriptors of all others, as root does.
pub(crate) fn sees_all() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::MetadataExt;
        fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// A line of `/proc/net/tcp` and its like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    address: SocketAddr,
    state: u8,
    uid: u32,
    inode: u64,
}

const TCP_LISTEN: u8 = 0x0a;

/// How many connections on the address are in TIME_WAIT. They have no process, and no inode.
pub(crate) fn lingering(protocol: Protocol, wanted: SocketAddr) -> usize {
    const TCP_TIME_WAIT: u8 = 0x06;
    if protocol != Protocol::Tcp {
        return 0;
    }
    let files = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::File::open(path).ok());
    let rows = files.flat_map(|file| BufReader::new(file).lines().map_while(Result::ok));
    rows.filter(|row| {
        let fields: Vec<&str> = row.split_ascii_whitespace().take(4).collect();
        fields.len() == 4
            && u8::from_str_radix(fields[3], 16) == Ok(TCP_TIME_WAIT)
            && parse_address(fields[1]).is_some_and(|address| {
                in_the_way(&Line { address, state: TCP_TIME_WAIT, uid: 0, inode: 0 }, wanted)
            })
    })
    .count()
}

/// Who has a unix socket of this path open to listen, in words.
#[cfg(unix)]
pub(crate) fn find_unix(path: &Path) -> Option<String> {
    find_unix_in(Path::new("/proc"), path)
}

/// Rows of /proc/net/unix: place 3 the flags, with 0x10000 for a listening one, 6 the inode, 7 the path (proc(5)).
#[cfg(unix)]
fn find_unix_in(proc: &Path, path: &Path) -> Option<String> {
    const LISTENS: u32 = 0x1_0000;
    // a path may have spaces: it is the rest of the row
    let wanted = format!(" {}", path.to_str()?);
    let file = fs::File::open(proc.join("net/unix")).ok()?;
    let inode = BufReader::new(file).lines().map_while(Result::ok).find_map(|row| {
        let mut fields = row.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let inode = fields.nth(2)?.parse().ok()?;
        (flags & LISTENS != 0 && row.ends_with(&wanted)).then_some(inode)
    })?;
    let line = Line { address: SocketAddr::from(([0, 0, 0, 0], 0)), state: 0, uid: 0, inode };
    let (pid, program) = owners(proc, &[line]).remove(&inode)?;
    Some(match program {
        _ if pid == std::process::id() => format!("this process itself (pid {pid})"),
        Some(program) => format!("{program} (pid {pid})"),
        None => format!("pid {pid}"),
    })
}

fn find_in(proc: &Path, passwd: &Path, protocol: Protocol, wanted: SocketAddr) -> Vec<Holder> {
    let mut lines = Vec::new();
    let names = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
        Protocol::Unix => return Vec::new(),
    };
    for name in names {
        let Ok(file) = fs::File::open(proc.join("net").join(name)) else { continue };
        let rows = BufReader::new(file).lines().map_while(Result::ok);
        lines.extend(rows.filter_map(|row| parse(&row)).filter(|line| in_the_way(line, wanted)));
    }
    // a listener is the likelier culprit; a connection holds a port too if its socket does not allow reuse
    let listening = |line: &Line| protocol == Protocol::Udp || line.state == TCP_LISTEN;
    if lines.iter().any(listening) {
        lines.retain(listening);
    }
    let mut owners = owners(proc, &lines);
    let mut holders: Vec<Holder> = Vec::new();
    for line in lines {
        let owner = owners.remove(&line.inode);
        let (pid, program) = owner.map_or((None, None), |(pid, program)| (Some(pid), program));
        let holder = Holder {
            pid,
            program,
            user: user_name(passwd, line.uid),
            protocol,
            address: line.address,
            connection: !listening(&line),
            this_process: pid == Some(std::process::id()),
            dual_stack: wanted.is_ipv4() && line.address.is_ipv6(),
        };
        if !holders.contains(&holder) {
            holders.push(holder);
        }
        if holders.len() == MOST {
            break;
        }
    }
    holders
}

/// Fields of a row, by place: 1 local address, 3 state, 7 uid, 9 inode. Sockets that lost their process (TIME_WAIT)
/// have inode 0.
fn parse(row: &str) -> Option<Line> {
    let fields: Vec<&str> = row.split_ascii_whitespace().take(10).collect();
    let inode = fields.get(9)?.parse().ok().filter(|&inode| inode != 0)?;
    Some(Line {
        address: parse_address(fields[1])?,
        state: u8::from_str_radix(fields[3], 16).ok()?,
        uid: fields[7].parse().ok()?,
        inode,
    })
}

/// The kernel prints each 32-bit word of an address as a number in its own byte order, and the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| u32::from_str_radix(ip.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (n, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(n)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// Whether a socket may be what kept `wanted` from being bound. Whether a `[::]` socket takes IPv4 is not shown in
/// `/proc`; as the port was refused, it is taken to.
fn in_the_way(line: &Line, wanted: SocketAddr) -> bool {
    let (theirs, ours) = (line.address, wanted);
    if theirs.port() != ours.port() {
        return false;
    }
    match (theirs.ip(), ours.ip()) {
        (a, b) if a == b => true,
        (IpAddr::V6(a), IpAddr::V4(_)) => a.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(b)) => b.is_unspecified(),
        (a, b) => a.is_unspecified() || b.is_unspecified(),
    }
}

/// Which process has which of these sockets open; of several, the one with the lowest id, which is the parent of a
/// pre-forked family.
fn owners(proc: &Path, lines: &[Line]) -> HashMap<u64, (u32, Option<String>)> {
    let mut found = HashMap::new();
    let mut wanted: Vec<String> = lines.iter().map(|line| format!("socket:[{}]", line.inode)).collect();
    let Ok(entries) = fs::read_dir(proc) else { return found };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut pids: Vec<u32> = names.collect();
    pids.sort_unstable();
    for pid in pids {
        if wanted.is_empty() {
            break;
        }
        let own = proc.join(pid.to_string());
        // not readable for another user's process
        let Ok(descriptors) = fs::read_dir(own.join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(place) = wanted.iter().position(|name| target.as_os_str() == name.as_str()) else {
                continue;
            };
            let name = wanted.swap_remove(place);
            let inode = name.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap_or(0);
            let program = fs::read_to_string(own.join("comm")).ok().map(|text| text.trim_end().to_owned());
            found.insert(inode, (pid, program));
        }
    }
    found
}

fn user_name(passwd: &Path, uid: u32) -> String {
    let number = uid.to_string();
    let text = fs::read_to_string(passwd).unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    });
    name.map_or(number.clone(), str::to_owned)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
