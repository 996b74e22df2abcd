//! `portcullis cid`: what a connection id tells.

use std::process::ExitCode;

use anyhow::{Context, bail};
use portcullis_edge::{
    h3::{ConnectionIds, RoutableIds},
    plan::{RoutableIdsPlan, hex},
};

use crate::cli::CidArgs;

pub(crate) fn explain(args: &CidArgs) -> anyhow::Result<ExitCode> {
    let id = hex(&args.id).with_context(|| format!("`{}` is not in hexadecimal digits", args.id))?;
    let Some(ids) = ids(args)? else { return Ok(ExitCode::FAILURE) };
    let Some(decoded) = ids.decode(&id) else { bail!(other(&ids, &id)) };
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if let Some(rotation) = decoded.rotation {
        println!("rotation    {rotation}");
        match &decoded.server_id {
            Some(server_id) => {
                println!("server id   {}\nnonce       {}", digits(server_id), digits(&decoded.nonce));
            }
            None => println!(
                "server id   none: balancers route it by address (the instance has used up its nonces)"
            ),
        }
    }
    println!("worker      {}\ngeneration  {}", decoded.worker, decoded.generation);
    Ok(ExitCode::SUCCESS)
}

/// How such ids are made; `None` if the configuration has mistakes, which are told.
fn ids(args: &CidArgs) -> anyhow::Result<Option<ConnectionIds>> {
    let plan = match (&args.config, args.server_id_length, args.nonce_length) {
        (Some(config), ..) => match crate::configuration::load(config) {
            Ok((plan, _)) => plan.quic.ids,
            Err(_) => return Ok(None),
        },
        (None, Some(server), Some(nonce)) => {
            let mut plan =
                RoutableIdsPlan::new(RoutableIds::new(vec![0; server.into()]).with_nonce_len(nonce));
            plan.key.clone_from(&args.key_file);
            Some(plan)
        }
        _ => None,
    };
    let Some(mut plan) = plan else { return Ok(Some(ConnectionIds::default())) };
    if args.config.is_none() {
        // of any configuration, and whether or not the length is told
        plan.ids = plan.ids.with_rotation(rotation(&args.id)).with_length_in_first_octet(false);
    }
    Ok(Some(plan.load()?))
}

/// The rotation of an id that can be read, else any.
fn rotation(id: &str) -> u8 {
    hex(id).and_then(|id| Some(id.first()? >> 5)).filter(|rotation| *rotation < 7).unwrap_or_default()
}

/// What is wrong with an id that is none of these.
fn other(ids: &ConnectionIds, id: &[u8]) -> String {
    if id.len() != ids.len() {
        return format!("this id has {} bytes, those of such an instance have {}", id.len(), ids.len());
    }
    let first = id.first().copied().unwrap_or_default();
    format!(
        "the first octet {first:#04x} (rotation {}, length {}) is not that of such an instance: the id is of another configuration, or none of ours",
        first >> 5,
        (first & 0x1f) + 1
    )
}
