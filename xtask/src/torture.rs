//! `torture`: what must hold when everything runs out, shown as it happens.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
};

use comfy_table::{Table, presets};

use crate::{Result, metadata, sh, test};

const HELP: &str = "\
usage: cargo xtask torture accept

accept   processes under `ulimit -n 100` and a thousand clients who come and stay, for the server and for a plain TCP
         echo; ten thousand connections against a limit of a thousand; one client with five thousand connections
";

/// Package, its test program, the tests in it, and what they show.
const ACCEPT: [(&str, &str, &str, &str); 5] = [
    (
        "portcullis-tests",
        "e2e",
        "torture::a_thousand_clients_and_a_hundred_descriptors",
        "HTTP: 1,000 clients, 100 descriptors",
    ),
    (
        "portcullis-tests",
        "e2e",
        "torture::upstreams_that_eat_the_descriptors",
        "HTTP/2: upstreams that eat the descriptors",
    ),
    (
        "portcullis-listener",
        "shortage",
        "more_clients_than_descriptors",
        "TCP echo: 1,000 clients, 100 descriptors",
    ),
    (
        "portcullis-listener",
        "limits",
        "ten_thousand_connections_against_a_thousand",
        "10,000 connections, a limit of 1,000",
    ),
    (
        "portcullis-listener",
        "limits",
        "one_client_with_five_thousand_connections_keeps_nobody_out",
        "one client with 5,000 connections",
    ),
];

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    if args.len() != 1 || args[0] != "accept" {
        return Err(HELP.into());
    }
    sh::run(sh::cargo().args(["build", "--package", "portcullis"]))?;
    let binary = metadata::load()?.target_directory.join("debug/portcullis");
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["what", "result"]);
    let mut failed = false;
    for (package, program, name, what) in ACCEPT {
        eprintln!("\n== {what}");
        let mut test: Command = sh::cargo();
        test.args(["test", "--quiet", "--package", package, "--test", program, "--", "--exact", name])
            .args(["--nocapture", "--test-threads=1"])
            .env(test::BINARY_VARIABLE, &binary)
            .stdin(Stdio::null());
        let passed = sh::run(&mut test).is_ok();
        failed |= !passed;
        table.add_row([what, if passed { "holds" } else { "FAILED" }]);
    }
    println!("\n{table}");
    if failed { Err("not everything holds".into()) } else { Ok(()) }
}
