//! A DNS server on loopback that answers what a test wrote down (RFC 1035), over UDP and TCP.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// What the records of a name hold.
#[derive(Clone, Debug)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV: priority, weight, port, target.
    Service(u16, u16, u16, String),
}

/// How questions are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// With the records, or the word that there are none.
    Answers,
    /// With SERVFAIL.
    Fails,
    /// Not at all.
    Silent,
}

struct State {
    records: HashMap<String, Vec<(u32, Data)>>,
    mood: Mood,
    questions: Vec<String>,
    over_tcp: usize,
}

/// The server. Ends with the value.
pub struct DnsServer {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

impl DnsServer {
    /// A server that knows no name yet.
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port on loopback");
            let addr = tcp.local_addr().expect("it is bound");
            // the other protocol's port of this number may be somebody's
            if let Ok(udp) = UdpSocket::bind(addr).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().expect("it is bound");
        let state =
            State { records: HashMap::new(), mood: Mood::Answers, questions: Vec::new(), over_tcp: 0 };
        let state = Arc::new(Mutex::new(state));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, Arc::clone(&state)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&state)));
        Self { addr, state, _tasks: tasks }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    /// Says from now on that these are the records of a name. Names are without the last dot, in lower case.
    pub fn set(&self, name: &str, ttl: u32, records: &[Data]) {
        let records = records.iter().map(|data| (ttl, data.clone())).collect();
        self.state().records.insert(name.to_owned(), records);
    }

    /// Gives a name one more record, with a TTL of its own.
    pub fn add(&self, name: &str, ttl: u32, data: Data) {
        self.state().records.entry(name.to_owned()).or_default().push((ttl, data));
    }

    /// Says from now on that these are the addresses of a name.
    pub fn set_addresses(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        self.set(name, ttl, &addresses.iter().map(|ip| Data::Address(*ip)).collect::<Vec<_>>());
    }

    /// Says that there is no such name.
    pub fn forget(&self, name: &str) {
        self.state().records.remove(name);
    }

    /// How questions are met from now on.
    pub fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// Questions so far: `A app.test`.
    pub fn questions(&self) -> Vec<String> {
        self.state().questions.clone()
    }

    /// Questions that came over TCP.
    pub fn over_tcp(&self) -> usize {
        self.state().over_tcp
    }

    /// Waits until the questions are so many.
    pub async fn wait_for_questions(&self, count: usize) {
        while self.state().questions.len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn serve_udp(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        if let Some(answer) = answer(&buffer[..length], &state, 1232) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        tasks.spawn(serve_stream(stream, Arc::clone(&state)));
    }
}

/// RFC 1035 section 4.2.2: each message behind its length.
async fn serve_stream(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut message = vec![0; usize::from(length)];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        state.lock().expect("nobody panics with it").over_tcp += 1;
        let Some(answer) = answer(&message, &state, usize::from(u16::MAX)) else { continue };
        let length = u16::try_from(answer.len()).expect("it was bounded");
        if stream.write_u16(length).await.is_err() || stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The answer to a message with one question.
fn answer(message: &[u8], state: &Mutex<State>, max: usize) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
    let question = message.get(12..at + 4)?;
    let name = labels.join(".");

    let mut state = state.lock().expect("nobody panics with it");
    let word = match kind {
        A => "A",
        AAAA => "AAAA",
        SRV => "SRV",
        _ => "?",
    };
    state.questions.push(format!("{word} {name}"));
    let (code, records) = match (state.mood, state.records.get(&name)) {
        (Mood::Silent, _) => return None,
        (Mood::Fails, _) => (2, Vec::new()),
        (Mood::Answers, None) => (3, Vec::new()),
        (Mood::Answers, Some(all)) => {
            (0, all.iter().filter_map(|(ttl, data)| record(kind, *ttl, data)).collect())
        }
    };
    let count = u16::try_from(records.len()).expect("tests are small");
    let body = records.concat();
    let cut = 12 + question.len() + body.len() > max;
    // a response, recursion was wanted and is had; whether it was cut
    let flags = 0x8180 | code | if cut { 0x0200 } else { 0 };
    let mut out = message[..2].to_vec();
    for word in [flags, 1, if cut { 0 } else { count }, 0, 0] {
        out.extend(u16::to_be_bytes(word));
    }
    out.extend(question);
    if !cut {
        out.extend(body);
    }
    Some(out)
}

fn record(kind: u16, ttl: u32, data: &Data) -> Option<Vec<u8>> {
    let rdata = match (kind, data) {
        (A, Data::Address(IpAddr::V4(ip))) => ip.octets().to_vec(),
        (AAAA, Data::Address(IpAddr::V6(ip))) => ip.octets().to_vec(),
        (SRV, Data::Service(priority, weight, port, target)) => {
            let mut rdata: Vec<u8> =
                [priority, weight, port].into_iter().flat_map(|n| n.to_be_bytes()).collect();
            for label in target.split('.').filter(|label| !label.is_empty()) {
                rdata.push(u8::try_from(label.len()).expect("a label"));
                rdata.extend(label.as_bytes());
            }
            rdata.push(0);
            rdata
        }
        _ => return None,
    };
    // the name is the question's, at byte 12
    let mut out = vec![0xc0, 12];
    out.extend(kind.to_be_bytes());
    out.extend(1_u16.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(rdata.len()).expect("it is short").to_be_bytes());
    out.extend(rdata);
    Some(out)
}
