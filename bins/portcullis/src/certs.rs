//! `portcullis certs`: a local authority and a certificate.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use portcullis_tls::ca::LocalCa;

use crate::cli::CertsArgs;

pub(crate) fn make(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.out)
        .with_context(|| format!("could not make the folder {}", args.out.display()))?;
    let ca = LocalCa::generate("portcullis local authority")?;
    let leaf = ca.issue(&args.names)?;
    write(&args.out.join("ca.pem"), &ca.pem().cert_pem, false)?;
    write(&args.out.join("cert.pem"), &leaf.cert_pem, false)?;
    write(&args.out.join("key.pem"), &leaf.key_pem, true)?;
    println!("wrote ca.pem, cert.pem and key.pem for {} to {}", args.names.join(", "), args.out.display());
    println!("authority SHA-256 {}", ca.fingerprint());
    Ok(ExitCode::SUCCESS)
}

/// A key is readable by its owner only, from its first byte on.
fn write(path: &Path, text: &str, secret: bool) -> anyhow::Result<()> {
    // a file that is there may be readable by others, and would stay so
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("could not replace {}", path.display()));
        }
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = secret;
    let mut file = options.open(path).with_context(|| format!("could not write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("could not write {}", path.display()))
}
