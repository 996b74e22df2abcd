//! `[quic]`: what all QUIC endpoints have in common.

use std::path::PathBuf;

use portcullis_edge::{
    h3::RoutableIds,
    plan::{Plan, RoutableIdsPlan, hex},
};
use toml::de::DeValue;

use crate::{
    errors::escape,
    reader::{Read, Table, Wrong},
    values::{boolean, integer, text, word},
};

/// Keys that say more about `server_id`.
const ID_KEYS: [&str; 4] = ["rotation", "nonce_length", "id_key", "length_in_first_octet"];

pub(crate) fn read(root: &mut Table<'_, '_>, plan: &mut Plan) {
    let Some(mut table) = root.table("quic", "`[quic]`") else { return };
    plan.quic.ids = ids(&mut table);
    table.finish();
}

fn ids(table: &mut Table<'_, '_>) -> Option<RoutableIdsPlan> {
    let at = table.key_span("server_id");
    if at.is_none() {
        for key in ID_KEYS {
            if let Some(at) = table.key_span(key) {
                let wrong = Wrong::new(format!("`{key}` goes only with `server_id`"));
                table.sink().error(at, wrong.hint("remove it, or give this instance an id"));
            }
        }
    }
    let server_id = table.get("server_id", server_id);
    // read even without one, for the errors in them
    let id = server_id.as_ref().map_or_else(|| vec![0], |id| id.get_ref().clone());
    let mut to = RoutableIdsPlan::new(RoutableIds::new(id));
    table.set("rotation", &mut to.ids.rotation, integer(0..=6));
    table.set("nonce_length", &mut to.ids.nonce_len, integer(4..=16));
    table.set("id_key", &mut to.key, key_file);
    table.set("length_in_first_octet", &mut to.ids.length_in_first_octet, boolean);
    if let (Err(error), Some(at)) = (to.ids.check(), at) {
        let hint = "draw up shorter ids for all instances, or give them shorter nonces (`nonce_length`)";
        table.sink().error(at, Wrong::new(error.to_string()).hint(hint));
    }
    server_id.map(|_| to)
}

fn server_id(value: &DeValue<'_>) -> Read<Vec<u8>> {
    let digits = word(value, "hexadecimal digits", "0a01")?;
    hex(digits).filter(|id| (1..=13).contains(&id.len())).ok_or_else(|| {
        Wrong::new(format!("wants 1 to 13 bytes as hexadecimal digits, found \"{}\"", escape(digits)))
            .hint("two digits a byte, as many for every instance: \"0a01\"")
    })
}

fn key_file(value: &DeValue<'_>) -> Read<Option<PathBuf>> {
    let path = text(value)?;
    if path.is_empty() || path.ends_with('/') {
        return Err(
            Wrong::new("wants the path of a file").hint("for example \"/etc/portcullis/quic-id.key\"")
        );
    }
    Ok(Some(path.into()))
}
