//! What the layers have in common that check by themselves.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Response};
use pin_project_lite::pin_project;

use super::Authenticated;

/// A value that is safe to send in a field: without control characters. `None` for one that can't be.
pub(crate) fn field_value(text: &str) -> Option<HeaderValue> {
    // bytes above ASCII are allowed in values (RFC 9110 section 5.5), and spaces at the ends are not kept
    HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| text.trim() == text)
}

/// A quoted string (RFC 9110 section 5.6.4). What can't stand in one becomes a question mark.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

pin_project! {
    /// Puts who a request was from among the extensions of its response.
    #[derive(Debug)]
    pub struct Identified<F> {
        #[pin]
        inner: F,
        who: Option<Authenticated>,
    }
}

impl<F> Identified<F> {
    pub(crate) fn new(inner: F, who: Authenticated) -> Self {
        Self { inner, who: Some(who) }
    }
}

impl<F, B, E> Future for Identified<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(who) = this.who.take() {
            response.extensions_mut().insert(who);
        }
        Poll::Ready(Ok(response))
    }
}
