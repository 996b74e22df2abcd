//! Raw HTTP/1.1 requests through the real binary to an origin that records every byte: each is refused and its connection
//! closed, or goes on in one reading, which a strict parser and lax ones agree upon ([`crate::support::judge`]).

mod chunks;
mod fields;
mod framing;
mod hosts;
mod lines;
mod sequences;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::task::JoinSet;

use crate::{
    config::plain,
    support::{
        edge::Edge,
        judge::{self, Reading},
        raw::{self, Answered},
        run,
    },
};

/// What an attacker wants the origin, or the edge, to find on its own.
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// One input and what must become of it.
struct Case {
    name: String,
    bytes: Vec<u8>,
    want: Want,
}

enum Want {
    /// Nothing reaches the origin. One answer with one of these statuses, and then the end of the connection; with no
    /// status in the list, the end alone.
    Refused(&'static [u16]),
    /// The same, on a connection that may stay open: what was refused has no body and ends where everybody says.
    Answered(u16),
    /// A body that is found out on its way: its head may have reached the origin, its end never does. One answer at most,
    /// and then the end of the connection.
    Cut,
    /// These requests reach the origin, in this order: method and target, host, body. As many are answered 200.
    Read(Vec<(&'static str, &'static str, &'static str)>),
    /// These requests reach the origin and are answered 200, and what follows is refused as in [`Want::Refused`].
    Then(Vec<(&'static str, &'static str, &'static str)>, &'static [u16]),
    /// The same for one request without body, to `a.test`; and of its head: these lines are in it, these names are not.
    Fields { with: &'static [&'static str], without: &'static [&'static str] },
}

fn case(name: impl Into<String>, bytes: impl AsRef<[u8]>, want: Want) -> Case {
    Case { name: name.into(), bytes: bytes.as_ref().to_vec(), want }
}

fn refused(name: impl Into<String>, bytes: impl AsRef<[u8]>) -> Case {
    case(name, bytes, Want::Refused(&[400]))
}

fn read(
    name: impl Into<String>,
    bytes: impl AsRef<[u8]>,
    want: &[(&'static str, &'static str, &'static str)],
) -> Case {
    case(name, bytes, Want::Read(want.to_vec()))
}

/// Runs a table: some edges side by side, each with its origin, take one case after the other.
fn check(cases: Vec<Case>) {
    run(async {
        let cases = Arc::new(cases);
        let next = Arc::new(AtomicUsize::new(0));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let mut lanes = JoinSet::new();
        for _ in 0..6 {
            let (cases, next, wrong) = (Arc::clone(&cases), Arc::clone(&next), Arc::clone(&wrong));
            lanes.spawn(async move {
                let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
                let edge = Edge::run(&plain(origin.addr())).await;
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let before = origin.received();
                    let answered = raw::send(edge.http(), &case.bytes).await;
                    let sent = news(&before, &settled(&origin).await);
                    if let Err(why) = judge(case, &answered, &sent) {
                        let sent: Vec<_> = sent.iter().map(|sent| String::from_utf8_lossy(sent)).collect();
                        wrong.lock().unwrap().push(format!(
                            "{}: {why}\n  in  {:?}\n  out {answered:?}\n  on  {sent:?}",
                            case.name,
                            String::from_utf8_lossy(&case.bytes[..case.bytes.len().min(300)])
                        ));
                    }
                }
            });
        }
        lanes.join_all().await;
        let wrong = wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    });
}

/// What the origin got, once nothing more comes: a client may be told of a refusal before the origin has read what had
/// gone on until then.
pub(crate) async fn settled(origin: &RawOrigin) -> Vec<Vec<u8>> {
    let mut before = origin.received();
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = origin.received();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// What each connection got since.
pub(crate) fn news(before: &[Vec<u8>], after: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let seen = |at: usize| before.get(at).map_or(0, Vec::len);
    let new = after.iter().enumerate().map(|(at, got)| got[seen(at)..].to_vec());
    new.filter(|got| !got.is_empty()).collect()
}

/// Whether these requests went on, each whole and no other. Over several connections their order may be any.
fn same(all: &Reading, expected: &[(&str, &str, &str)]) -> Result<(), String> {
    let mut found: Vec<_> =
        all.messages.iter().map(|m| (m.line.clone(), m.host.clone(), m.body.clone())).collect();
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(line, host, body)| (format!("{line} HTTP/1.1"), (*host).to_owned(), body.as_bytes().to_vec()))
        .collect();
    found.sort();
    expected.sort();
    if all.cut.is_some() || found != expected {
        return Err(format!("another reading: {all:?}"));
    }
    Ok(())
}

fn judge(case: &Case, answered: &Answered, sent: &[Vec<u8>]) -> Result<(), String> {
    let mut all = Reading::default();
    for sent in sent {
        let reading = judge::one_reading(sent)?;
        all.messages.extend(reading.messages);
        all.cut = all.cut.or(reading.cut);
    }
    let statuses = answered.statuses();
    let is = |fine: bool, what: &str| if fine { Ok(()) } else { Err(what.to_owned()) };
    match &case.want {
        Want::Refused(expected) => {
            is(sent.is_empty(), "something went on")?;
            is(answered.closed, "the connection is open")?;
            match (statuses.as_slice(), expected) {
                ([], []) => Ok(()),
                ([status], _) => is(expected.contains(status), "another status"),
                _ => Err("not one answer".to_owned()),
            }
        }
        Want::Answered(status) => {
            is(sent.is_empty(), "something went on")?;
            is(statuses == [*status], "another status")
        }
        Want::Cut => {
            is(all.messages.is_empty(), "a whole request went on")?;
            is(answered.closed, "the connection is open")?;
            is(matches!(statuses[..], [] | [400 | 413 | 431]), "another answer")
        }
        Want::Read(expected) => {
            same(&all, expected)?;
            is(statuses.len() == expected.len() && statuses.iter().all(|s| *s == 200), "other answers")
        }
        Want::Then(expected, refusals) => {
            same(&all, expected)?;
            is(answered.closed, "the connection is open")?;
            let (well, last) = statuses.split_at(statuses.len().min(expected.len()));
            is(well.len() == expected.len() && well.iter().all(|s| *s == 200), "other answers")?;
            match (last, refusals) {
                ([], []) => Ok(()),
                ([last], _) => is(refusals.contains(last), "another refusal"),
                _ => Err("not one refusal".to_owned()),
            }
        }
        Want::Fields { with, without } => {
            is(all.messages.len() == 1 && all.cut.is_none(), "not one request")?;
            is(all.messages[0].host == "a.test" && all.messages[0].body.is_empty(), "another request")?;
            is(statuses == [200], "another status")?;
            let head = String::from_utf8_lossy(&sent[0]).into_owned();
            for line in *with {
                let count = head.split("\r\n").filter(|found| found.eq_ignore_ascii_case(line)).count();
                is(count == 1, &format!("{count} times {line:?}"))?;
            }
            let lower = head.to_ascii_lowercase();
            for name in *without {
                is(!lower.contains(&format!("\r\n{name}:")), &format!("there is a {name:?}"))?;
            }
            Ok(())
        }
    }
}
