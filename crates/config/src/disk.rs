//! Readers of paths on disk, which are not looked at here.

use std::path::PathBuf;

use toml::de::DeValue;

use crate::{
    reader::{Read, Wrong},
    values::word,
};

/// A path of a file or a directory.
pub(crate) fn path(value: &DeValue<'_>) -> Read<PathBuf> {
    named(word(value, "a path", "/etc/portcullis/fullchain.pem")?)
}

/// As [`path`], of a text that is known to be one.
pub(crate) fn named(text: &str) -> Read<PathBuf> {
    match text {
        "" => Err(Wrong::new("is an empty path").hint("it would be the configuration file's own directory")),
        text if text.contains('\0') => Err(Wrong::new("is no path: it has a NUL character in it")),
        text => Ok(text.into()),
    }
}

/// A path of a file, which no directory can be.
pub(crate) fn file(value: &DeValue<'_>) -> Read<PathBuf> {
    let path = path(value)?;
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err(Wrong::new("wants the path of a file, and ends with a slash").hint("leave it out"));
    }
    Ok(path)
}
