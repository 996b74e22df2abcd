//! Field sections (RFC 9204), with the static table only.
//!
//! We announce a dynamic table of no size, so a client can't make us keep one, block a stream on another or expand a
//! few bytes to many: what a section decodes to is at most what Huffman coding makes of it, 8/5 of its length, and the
//! static table's lines.

pub(crate) mod decode;
pub(crate) mod encode;
mod huffman;
mod static_table;
