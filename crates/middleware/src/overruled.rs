//! The future of a layer that watches the request's body: what is wrong with the body decides what is answered, and not what the
//! service makes of it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll},
};

use http::{Response, StatusCode};
use pin_project_lite::pin_project;

/// Shared by the body, which says that it is broken, and the future.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broken(Arc<AtomicU16>);

impl Broken {
    /// What is to be answered.
    pub(crate) fn set(&self, status: StatusCode) {
        self.0.store(status.as_u16(), Ordering::Relaxed);
    }

    fn status(&self) -> Option<StatusCode> {
        // 0, where nothing was set, is no status
        StatusCode::from_u16(self.0.load(Ordering::Relaxed)).ok()
    }
}

pin_project! {
    /// The inner service's future, overruled by an empty answer once the request's body is broken.
    #[derive(Debug)]
    pub struct Overruled<F> {
        #[pin]
        future: F,
        broken: Option<Broken>,
    }
}

impl<F> Overruled<F> {
    /// Without a body that can break nothing is overruled.
    pub(crate) fn new(future: F, broken: Option<Broken>) -> Self {
        Self { future, broken }
    }
}

impl<F, B, E> Future for Overruled<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = this.future.poll(cx);
        // whether the service has an answer of its own or still waits for one
        match this.broken.as_ref().and_then(Broken::status) {
            Some(status) => Poll::Ready(Ok(crate::early::empty(status))),
            None => result,
        }
    }
}
