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

/// The authority is made once and kept: who trusts it trusts every certificate made later as well.
pub(crate) fn make(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    let out = &args.out;
    fs::create_dir_all(out).with_context(|| format!("could not make the folder {}", out.display()))?;
    let (ca, made) = authority(out)?;
    let leaf = ca.issue(&args.names)?;
    write(&out.join("cert.pem"), &leaf.cert_pem, false)?;
    write(&out.join("key.pem"), &leaf.key_pem, true)?;
    let what = if made { "a new authority (ca.pem, ca-key.pem)" } else { "the authority that was there" };
    println!("wrote cert.pem and key.pem for {} to {}, by {what}", args.names.join(", "), out.display());
    println!("authority SHA-256 {}", ca.fingerprint());
    if made {
        println!(
            "trust ca.pem once: curl --cacert, a browser's settings, or the system's store; keep ca-key.pem to yourself"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The authority of a folder, and whether it was made just now.
fn authority(out: &Path) -> anyhow::Result<(LocalCa, bool)> {
    let (cert, key) = (out.join("ca.pem"), out.join("ca-key.pem"));
    // without its key an authority is no use, and a key alone belongs to one that is gone
    match (read(&cert)?, read(&key)?) {
        (Some(cert_pem), Some(key_pem)) => {
            let ca = LocalCa::from_pem(&cert_pem, &key_pem).with_context(|| {
                format!("the authority in {} can't be used; move it away for a new one", out.display())
            })?;
            return Ok((ca, false));
        }
        (None, None) => {}
        (Some(_), None) => anyhow::bail!(
            "{} is there without its key {}: move it away for a new authority, or choose another --out",
            cert.display(),
            key.display()
        ),
        (None, Some(_)) => anyhow::bail!(
            "{} is there without its certificate {}: move it away for a new authority, or choose another --out",
            key.display(),
            cert.display()
        ),
    }
    let ca = LocalCa::generate("portcullis local authority")?;
    write(&key, &ca.pem().key_pem, true)?;
    write(&cert, &ca.pem().cert_pem, false)?;
    Ok((ca, true))
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
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
