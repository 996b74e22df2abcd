//! `[[certificate]]`.

use std::ops::Range;

use portcullis_edge::plan::CertificateSource;

use crate::{
    disk::path,
    net::certificate_name,
    reader::{Spanned, Table, Wrong, items},
};

/// A certificate's source with what the checks point at.
pub(crate) struct Certificate {
    pub(crate) span: Range<usize>,
    pub(crate) source: Option<CertificateSource>,
    /// The names of one that is to be issued.
    pub(crate) acme: Option<Spanned<Vec<String>>>,
}

/// The four kinds, each by its first key.
const KINDS: &[&str] = &["cert", "directory", "acme", "self_signed"];

pub(crate) fn read(mut table: Table<'_, '_>) -> Certificate {
    let span = table.span();
    let kinds: Vec<_> = KINDS.iter().filter_map(|kind| Some((*kind, table.key_span(kind)?))).collect();
    if let [(first, _), rest @ ..] = &kinds[..] {
        for (kind, at) in rest {
            let wrong = Wrong::new(format!("`{kind}` does not go with `{first}`"));
            table.sink().error(at.clone(), wrong.hint("write a `[[certificate]]` of its own for each"));
        }
    }
    let has_key = table.key_span("key");
    if kinds.is_empty() && has_key.is_none() {
        let wrong = Wrong::new("the `[[certificate]]` has no source")
            .hint("add `cert` and `key`, or `directory`, or `acme = [\"www.example.com\"]`, or `self_signed = [\"localhost\"]`");
        table.sink().absent(span.clone(), wrong);
    }
    let pair = kinds.iter().any(|(kind, _)| *kind == "cert") || (kinds.is_empty() && has_key.is_some());
    if let Some(at) = has_key
        && !pair
    {
        table.sink().error(at, Wrong::new("`key` goes only with `cert`"));
    }
    let (cert, key) = if pair {
        (table.need("cert", "\"fullchain.pem\"", path), table.need("key", "\"privkey.pem\"", path))
    } else {
        (table.get("cert", path), table.get("key", path))
    };
    let directory = table.get("directory", path);
    let acme = table.list("acme", "\"www.example.com\"", certificate_name);
    let names = table.list("self_signed", "\"localhost\"", certificate_name);
    table.finish();

    let source = if let (Some(cert), Some(key)) = (cert, key) {
        Some(CertificateSource::Files { cert: cert.into_inner(), key: key.into_inner() })
    } else if let Some(directory) = directory {
        Some(CertificateSource::Directory(directory.into_inner()))
    } else {
        names.map(|names| CertificateSource::SelfSigned { names: items(Some(names)) })
    };
    let acme = acme.map(|names| {
        let span = names.span();
        Spanned::new(span, items(Some(names)))
    });
    Certificate { span, source, acme }
}
