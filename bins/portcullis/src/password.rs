//! Hashes for the users of `[basic_auth]`.

use std::{
    io::{BufRead as _, IsTerminal as _, Read as _},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use portcullis_edge::middleware::basic_auth::hash_password;

/// Longer ones than this nobody types.
const LONGEST: u64 = 1024;

/// Reads a password from the first line of standard input and prints its hash.
pub(crate) fn hash() -> anyhow::Result<ExitCode> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("the password, which is shown as it is typed, and Enter:");
    }
    let mut line = Vec::new();
    let mut input = input.lock().take(LONGEST + 2);
    input.read_until(b'\n', &mut line).context("could not read a password")?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let password = line.strip_suffix(b"\r").unwrap_or(line);
    ensure!(!password.is_empty(), "there is no password in the first line of standard input");
    ensure!(password.len() as u64 <= LONGEST, "the password is longer than {LONGEST} bytes");
    println!("{}", hash_password(password)?);
    Ok(ExitCode::SUCCESS)
}
