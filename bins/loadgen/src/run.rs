//! A load run from end to end.

use std::{
    error::Error,
    io::Write as _,
    net::SocketAddr,
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use http::{HeaderValue, Uri};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet};

use crate::{
    cli::{LoadOptions, Protocol},
    clock::{Clock, Schedule},
    h1, h2load, h3load,
    io::TlsTarget,
    pacer, report,
    shared::Shared,
    stats::Stats,
    target::{self, Target},
    tls,
    worker::{Body, OpenLoop, Plan, Worker},
    ws,
};

/// Between the start of the threads and the first request.
const HEAD_START: Duration = Duration::from_millis(50);
/// For finding out which of a host's addresses answers.
const PROBE: Duration = Duration::from_secs(3);

/// Runs, and prints the report. Fails if no request succeeded.
pub(crate) fn run(options: &LoadOptions) -> Result<(), Box<dyn Error>> {
    let target = target::find(&options.url, &[], options.own_host)?;
    let plan = Arc::new(plan(options, &target)?);
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = options.threads.unwrap_or(cores).min(options.connections);
    pacer::wake_up_promptly();
    let clock = Clock::new(Instant::now() + HEAD_START, options.warmup, options.duration);
    let schedule = options.rate.map(|rate| Schedule::new(&clock, rate));
    let gates: Vec<_> = (0..threads).map(|_| Arc::new(Semaphore::new(0))).collect();
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let plan = Arc::clone(&plan);
            let open = schedule.map(|schedule| OpenLoop {
                schedule,
                gate: Arc::clone(&gates[index]),
                first: index as u64,
                stride: threads as u64,
            });
            let connections = share(options.connections, threads, index);
            thread::spawn(move || work(plan, clock, open, connections))
        })
        .collect();
    let pacer = schedule.map(|schedule| pacer::start(schedule, gates));
    if options.marks {
        mark(clock.from, "measure begin")?;
        mark(clock.until, "measure end")?;
    }
    let mut stats = Stats::new();
    for worker in workers {
        stats.merge(worker.join().map_err(|_| "a thread panicked")??);
    }
    if let Some(pacer) = pacer {
        pacer.join().map_err(|_| "the pacer panicked")?;
    }
    if options.json {
        println!("{}", report::as_json(options, threads, &stats));
    } else {
        print!("{}", report::as_text(options, threads, &stats));
    }
    if stats.requests() == 0 {
        let why = stats.first_error().unwrap_or("none was answered in time");
        return Err(format!("no request succeeded: {why}").into());
    }
    Ok(())
}

/// How many of `all` the thread `index` of `threads` gets.
fn share(all: usize, threads: usize, index: usize) -> usize {
    all / threads + usize::from(index < all % threads)
}

fn mark(at: Instant, line: &str) -> std::io::Result<()> {
    pacer::sleep_until(at);
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

fn plan(options: &LoadOptions, target: &Target) -> Result<Plan, Box<dyn Error>> {
    let tls = match options.protocol.alpn() {
        None => None,
        Some(alpn) => Some(TlsTarget {
            config: tls::client_config(&options.trust, &[alpn], options.resumption)?,
            name: ServerName::try_from(target.host.clone())?,
        }),
    };
    let authority = options.url.authority().ok_or("the URL names no host")?;
    let host = match &options.host_header {
        Some(host) => host.clone(),
        None => HeaderValue::from_str(authority.as_str())?,
    };
    // h2 and h3 send it as :authority
    let mut parts = options.url.clone().into_parts();
    parts.authority = Some(host.to_str()?.parse()?);
    Ok(Plan {
        protocol: options.protocol,
        addr: address(options.protocol, &target.addresses)?,
        tls,
        method: options.method.clone(),
        uri: Uri::from_parts(parts)?,
        host,
        body: Body::new(options.body_bytes),
        streams: options.streams,
        per_connection: options.per_connection,
        timeout: options.timeout,
    })
}

/// The first address that accepts a connection: `localhost` is two addresses and often only one of them listens.
fn address(protocol: Protocol, addresses: &[SocketAddr]) -> Result<SocketAddr, Box<dyn Error>> {
    if protocol == Protocol::H3 && addresses.len() == 1 {
        return Ok(addresses[0]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut last: Box<dyn Error> = "no address".into();
        for address in addresses {
            match tokio::time::timeout(PROBE, TcpStream::connect(address)).await {
                Ok(Ok(_)) => return Ok(*address),
                Ok(Err(error)) => last = format!("{address}: {error}").into(),
                Err(_) => last = format!("{address}: no answer in {} s", PROBE.as_secs()).into(),
            }
        }
        // QUIC may listen where TCP does not
        if protocol == Protocol::H3 { Ok(addresses[0]) } else { Err(last) }
    })
}

/// One thread's slots, to their end.
fn work(plan: Arc<Plan>, clock: Clock, open: Option<OpenLoop>, connections: usize) -> std::io::Result<Stats> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(plan, clock, open));
        tokio::time::sleep_until(clock.begin.into()).await;
        let mut slots = JoinSet::new();
        for _ in 0..connections {
            spawn_slots(&mut slots, &worker);
        }
        let all = async {
            while let Some(ended) = slots.join_next().await {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        };
        let _ = tokio::time::timeout_at(worker.give_up_at().into(), all).await;
        Ok(worker.take_stats())
    })
}

fn spawn_slots(slots: &mut JoinSet<()>, worker: &Rc<Worker>) {
    match worker.plan.protocol {
        Protocol::H1 | Protocol::H1s => {
            slots.spawn_local(h1::slot(Rc::clone(worker)));
        }
        Protocol::Ws => {
            slots.spawn_local(ws::slot(Rc::clone(worker)));
        }
        Protocol::H2 => {
            let shared = Shared::new();
            for _ in 0..worker.plan.streams {
                slots.spawn_local(h2load::slot(Rc::clone(worker), Rc::clone(&shared)));
            }
        }
        Protocol::H3 => {
            let shared = Shared::new();
            for _ in 0..worker.plan.streams {
                slots.spawn_local(h3load::slot(Rc::clone(worker), Rc::clone(&shared)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_shared_out_evenly() {
        assert_eq!((0..3).map(|index| share(64, 3, index)).collect::<Vec<_>>(), [22, 21, 21]);
        assert_eq!((0..2).map(|index| share(1, 2, index)).sum::<usize>(), 1);
    }
}
