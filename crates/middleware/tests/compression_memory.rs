//! What an encoder costs while its client takes nothing. The only test of its process, since it looks at all of its memory.
#![cfg(all(target_os = "linux", feature = "compression"))]

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use portcullis_middleware::compression::CompressionLayer;
use tower::{Layer, Service, service_fn};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}

/// Text that goes on, piece by piece, until so much of it was read, and then pauses.
struct Text {
    left: usize,
    state: u64,
}

impl Body for Text {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const PIECE: usize = 64 << 10;
        if self.left == 0 {
            return Poll::Pending;
        }
        self.left = self.left.saturating_sub(PIECE);
        let letter = |_| {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"etaoin shrdlu cm"[(self.state >> 60) as usize]
        };
        let piece: Vec<u8> = (0..PIECE).map(letter).collect();
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }
}

async fn answer(_: Request<()>) -> Result<Response<Text>, Infallible> {
    let response = Response::builder().header("content-type", "text/plain");
    Ok(response.body(Text { left: 2 << 20, state: 1 }).expect("its fields are right"))
}

#[test]
fn what_an_encoder_costs() {
    const COUNT: u64 = 4;
    let mut service = CompressionLayer::default().layer(service_fn(answer));
    let mut context = Context::from_waker(Waker::noop());
    let mut kept = Vec::new();
    // what `CompressionOptions::max_at_once` says, and what the system and this test take beside it
    let mut encode = |coding: &str| {
        let request = Request::get("/").header("accept-encoding", coding).body(()).expect("it is right");
        let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut context) else {
            panic!("it answers at once")
        };
        assert_eq!(response.headers()["content-encoding"], coding);
        let mut body = Box::pin(response.into_body());
        while body.as_mut().poll_frame(&mut context).is_ready() {}
        // none is let go of, so that the next one finds nothing to use again
        kept.push(body);
    };
    for (coding, most) in [("gzip", 640 << 10), ("zstd", 4 << 20), ("br", 4 << 20)] {
        // code and tables that all encoders share come with the first
        encode(coding);
        let before = resident();
        for _ in 0..COUNT {
            encode(coding);
        }
        let each = resident().saturating_sub(before) / COUNT;
        assert!(each < most, "{coding}: {each} bytes");
    }
}
