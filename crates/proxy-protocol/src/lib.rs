//! The PROXY protocol, versions 1 and 2: a strict parser and an encoder, without IO.
