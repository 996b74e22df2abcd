//! `[access_log]`.

use portcullis_config::parse;
use portcullis_edge::{
    middleware::access_log::Sampling,
    plan::{AccessLogPlan, LogOutput, Overflow, Setting},
    telemetry::access_log::{Format, JsonFields, Redaction, Template},
};

use super::{LEAST, plan};

#[allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
pub(super) fn is_the_full_one(logs: &[AccessLogPlan]) {
    let [log] = logs else { panic!("{logs:?}") };
    assert_eq!(log.output, LogOutput::Stdout);
    let names = [
        "time",
        "client",
        "method",
        "host",
        "target",
        "status",
        "bytes",
        "duration_ms",
        "upstream",
        "request_id",
    ];
    assert_eq!(log.format, Format::Json(JsonFields::new(names).unwrap()));
    assert_eq!(log.redaction, Redaction::default().with(["card_number"]).without(["code"]));
    let sampling = Sampling::new(10.try_into().unwrap())
        .with_errors_from(Some(500))
        .with_slower_than(Some(super::secs(2)));
    assert_eq!(log.sampling, sampling);
    assert_eq!(log.overflow, Overflow::Wait(super::ms(500)));
    assert_eq!(log.buffer_bytes, 8 << 20);
}

#[test]
fn destinations() {
    let log = |text: &str| plan(&format!("{LEAST}[access_log]\n{text}")).access_log;
    assert_eq!(log(""), [AccessLogPlan::new(LogOutput::Stdout)]);
    assert_eq!(log("output = \"off\""), []);
    assert_eq!(log("output = \"./a.log\""), [AccessLogPlan::new(LogOutput::File("./a.log".into()))]);
    assert_eq!(log("output = \"syslog\""), [AccessLogPlan::new(LogOutput::Syslog("/dev/log".into()))]);
    assert_eq!(log("output = \"syslog:/run/l\"")[0].output, LogOutput::Syslog("/run/l".into()));
    let two = "[[access_log]]\n[[access_log]]\noutput = \"./b.log\"\nformat = \"common\"\n";
    let logs = plan(&format!("{LEAST}{two}")).access_log;
    let file = AccessLogPlan::new(LogOutput::File("./b.log".into())).with_format(Format::Common);
    assert_eq!(logs, [AccessLogPlan::new(LogOutput::Stdout), file]);
    let many = format!("{LEAST}{}", "[[access_log]]\n".repeat(9));
    assert!(parse("a.toml", &many).unwrap_err().to_string().contains("more than 8"));
}

#[test]
fn forms() {
    let format = |text: &str| plan(&format!("{LEAST}[access_log]\n{text}")).access_log.remove(0).format;
    assert_eq!(format("format = \"json\""), Format::Json(JsonFields::default()));
    let template = Template::parse("$status \"$target\"").unwrap();
    assert_eq!(format("template = '$status \"$target\"'"), Format::Template(template));
    let redaction = |text: &str| plan(&format!("{LEAST}[access_log]\n{text}")).access_log.remove(0).redaction;
    assert_eq!(redaction("redact = \"off\""), Redaction::none());
    assert_eq!(redaction("redact = [\"a\"]"), Redaction::default().with(["a"]));
}

#[test]
fn of_routes() {
    let route = |text: &str| {
        let plan =
            plan(&format!("{LEAST}[access_log]\n[[route]]\nhost = \"r.test\"\nrespond = \"x\"\n{text}"));
        plan.routes.into_iter().find(|route| route.matches.host.is_some()).unwrap()
    };
    assert_eq!((route("").name, route("").access_log), (None, Setting::Inherit));
    assert_eq!(route("name = \"shop\"").name.as_deref(), Some("shop"));
    assert_eq!(route("access_log = \"off\"").access_log, Setting::Off);
    let sampling = Sampling::new(5.try_into().unwrap()).with_errors_from(Some(400));
    let text = "[route.access_log]\nsample = 5\nkeep_errors = \"4xx\"";
    assert_eq!(route(text).access_log, Setting::Own(sampling));
}
