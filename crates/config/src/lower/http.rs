//! `[listener.http]`.

use portcullis_edge::{plan::ListenerPlan, server::OnDisconnect};

use crate::{
    reader::{Spanned, Table, Wrong},
    values::{boolean, choice, duration, integer, ms, secs, size},
};

pub(super) fn read(listener: &mut Table<'_, '_>, plan: &mut ListenerPlan) {
    let Some(mut table) = listener.table("http", "`[listener.http]`") else { return };
    let to = &mut plan.http;
    let time = || duration(ms(100)..=secs(24 * 3600));
    table.set("first_request_timeout", &mut to.first_request_timeout, time());
    table.set("header_timeout", &mut to.header_timeout, time());
    table.set("idle_timeout", &mut to.idle_timeout, time());
    table.set("release_after", &mut to.release_after, duration(ms(0)..=secs(24 * 3600)));
    table.set("send_timeout", &mut to.send_timeout, time());
    table.set("min_send_rate", &mut to.min_send_rate, size(0..=1 << 30));
    table.set("min_body_rate", &mut to.min_body_rate, size(0..=1 << 30));
    table.set("body_grace", &mut to.body_grace, duration(secs(1)..=secs(3600)));
    to.max_age = table.get("max_age", duration(secs(1)..=secs(365 * 86_400))).map(Spanned::into_inner);
    table.set("max_requests", &mut to.max_requests, integer(0..=1_000_000_000));
    table.set("linger", &mut to.linger, duration(ms(0)..=secs(60)));
    on_disconnect(&mut table, &mut to.on_disconnect);
    table.set("title_case", &mut to.title_case_headers, boolean);
    table.set("h2c", &mut to.h2c, boolean);
    table.set("h2_stream_window", &mut to.h2_stream_window, size(64 << 10..=16 << 20));
    table.set("h2_connection_window", &mut to.h2_connection_window, size(64 << 10..=64 << 20));
    table.set("h2_max_resets", &mut to.h2_max_resets, integer(1..=1_000_000));
    table.set("h2_max_control_frames", &mut to.h2_max_control_frames, integer(100..=1_000_000));
    table.set("h2_ping_interval", &mut to.h2_ping_interval, duration(secs(1)..=secs(3600)));
    table.set("h2_ping_timeout", &mut to.h2_ping_timeout, duration(secs(1)..=secs(3600)));
    table.finish();
}

fn on_disconnect(table: &mut Table<'_, '_>, to: &mut OnDisconnect) {
    let mut finish = false;
    table.set("on_disconnect", &mut finish, choice(&[("cancel", false), ("finish", true)]));
    let (mut max, mut within) = (1000, secs(60));
    for key in ["finish_max", "finish_within"] {
        if !finish && let Some(at) = table.key_span(key) {
            let wrong = Wrong::new(format!("`{key}` goes only with `on_disconnect = \"finish\"`"));
            table.sink().error(at, wrong);
        }
    }
    table.set("finish_max", &mut max, integer(1..=1_000_000));
    table.set("finish_within", &mut within, duration(secs(1)..=secs(24 * 3600)));
    if finish {
        *to = OnDisconnect::Finish { max, within };
    }
}
