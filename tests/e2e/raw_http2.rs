//! HTTP/2 requests of hand-made frames through the real binary to an origin that records every byte: each is refused, or
//! goes on in one reading, which a strict HTTP/1.1 parser and lax ones agree upon ([`crate::support::judge`]).

mod connection;
mod messages;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use portcullis_testkit::origin::{Answer, RawOrigin};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::{
    config::plain,
    raw_http1::{news, settled},
    support::{
        edge::Edge,
        frames::{self, END_HEADERS, END_STREAM, HEADERS, Outcome, PREFACE, frame},
        judge::{self, Reading},
        run,
    },
};

/// What is sent behind the preface, and what must become of it.
struct Case {
    name: String,
    frames: Vec<u8>,
    want: Want,
}

enum Want {
    /// Nothing reaches the origin. The stream is reset, or the connection ended with a GOAWAY, or there is an answer with a
    /// status of 4xx or 501.
    Refused,
    /// The same, and no other refusal than the connection's end.
    GoAway,
    /// A body that is found out on its way: its head may have reached the origin, its end never does, and nobody gets a 200.
    Cut,
    /// The request reaches the origin with this line, host and body, and is answered 200; and of its head: these lines are
    /// in it, these names are not.
    Read {
        line: &'static str,
        host: &'static str,
        body: &'static str,
        with: &'static [&'static str],
        without: &'static [&'static str],
    },
}

fn case(name: impl Into<String>, frames: Vec<u8>, want: Want) -> Case {
    Case { name: name.into(), frames, want }
}

/// One HEADERS frame that is the whole request.
fn headers(block: Vec<u8>) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

fn refused(name: impl Into<String>, block: Vec<u8>) -> Case {
    case(name, headers(block), Want::Refused)
}

fn read(name: impl Into<String>, frames: Vec<u8>, line: &'static str, body: &'static str) -> Case {
    case(name, frames, Want::Read { line, host: "a.test", body, with: &[], without: &[] })
}

/// Runs a table, each case on a connection of its own.
fn check(cases: Vec<Case>) {
    run(async {
        let cases = Arc::new(cases);
        let next = Arc::new(AtomicUsize::new(0));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let mut lanes = JoinSet::new();
        for _ in 0..4 {
            let (cases, next, wrong) = (Arc::clone(&cases), Arc::clone(&next), Arc::clone(&wrong));
            lanes.spawn(async move {
                let origin = RawOrigin::script(vec![Answer::ok("ok")]).await;
                let edge = Edge::run(&plain(origin.addr())).await;
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let before = origin.received();
                    let mut io = TcpStream::connect(edge.http()).await.unwrap();
                    io.write_all(&[PREFACE, &case.frames].concat()).await.unwrap();
                    let outcome = frames::outcome(&mut io).await;
                    drop(io);
                    let sent = news(&before, &settled(&origin).await);
                    if let Err(why) = judge(case, &outcome, &sent) {
                        let sent: Vec<_> = sent.iter().map(|sent| String::from_utf8_lossy(sent)).collect();
                        wrong
                            .lock()
                            .unwrap()
                            .push(format!("{}: {why}\n  {outcome:?}\n  {sent:?}", case.name));
                    }
                }
            });
        }
        lanes.join_all().await;
        let wrong = wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    });
}

fn judge(case: &Case, outcome: &Outcome, sent: &[Vec<u8>]) -> Result<(), String> {
    let mut all = Reading::default();
    for sent in sent {
        let reading = judge::one_reading(sent)?;
        all.messages.extend(reading.messages);
        all.cut = all.cut.or(reading.cut);
    }
    let is = |fine: bool, what: &str| if fine { Ok(()) } else { Err(what.to_owned()) };
    let given_up = outcome.reset.is_some() || outcome.goaway.is_some_and(|code| code != 0);
    match case.want {
        Want::Refused => {
            is(sent.is_empty(), "something went on")?;
            is(given_up || matches!(outcome.status, Some(400..=499 | 501)), "not refused")
        }
        Want::GoAway => {
            is(sent.is_empty(), "something went on")?;
            is(outcome.goaway.is_some_and(|code| code != 0) && outcome.closed, "the connection goes on")
        }
        Want::Cut => {
            is(all.messages.is_empty(), "a whole request went on")?;
            // where the client itself gave up there is nothing to be told
            let over = outcome.status.is_none() && outcome.closed;
            is(given_up || over || matches!(outcome.status, Some(400..=499)), "not refused")
        }
        Want::Read { line, host, body, with, without } => {
            is(all.messages.len() == 1 && all.cut.is_none(), "not one request")?;
            let message = &all.messages[0];
            is(message.line == format!("{line} HTTP/1.1"), "another line")?;
            is(message.host == host && message.body == body.as_bytes(), "another request")?;
            is(outcome.status == Some(200) && outcome.ended && outcome.body == b"ok", "another answer")?;
            let head = String::from_utf8_lossy(&sent[0]).to_ascii_lowercase();
            for line in with {
                is(
                    head.split("\r\n").filter(|found| found == line).count() == 1,
                    &format!("not one {line:?}"),
                )?;
            }
            for name in without {
                is(!head.contains(&format!("\r\n{name}:")), &format!("there is a {name:?}"))?;
            }
            Ok(())
        }
    }
}
