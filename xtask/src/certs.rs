//! `certs`: a local authority and a certificate for trying things out, made by the binary itself.

use std::{ffi::OsString, path::Path};

use crate::{Result, sh};

const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Builds the binary and lets it write the certificate.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let dir = match args {
        [] => Path::new("certs"),
        [dir] => Path::new(dir),
        _ => return Err("usage: cargo xtask certs [DIR]".into()),
    };
    let mut command = sh::cargo();
    command.args(["run", "--quiet", "--package", "portcullis", "--", "certs", "--out"]).arg(dir).args(NAMES);
    sh::run(&mut command)
}

/// The same with a binary that is built already.
pub(crate) fn write_with(binary: &Path, dir: &Path) -> Result<()> {
    sh::output(std::process::Command::new(binary).args(["certs", "--out"]).arg(dir).args(NAMES))?;
    for name in ["cert.pem", "key.pem"] {
        if !dir.join(name).exists() {
            return Err(format!("`portcullis certs` wrote no {name} in {}", dir.display()).into());
        }
    }
    Ok(())
}
