//! What load balancers and traces get: `/capacity`, load headers, agent checks, `traceparent`, durations by route.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bitnet_server::backend::BackendState;
use bitnet_server::{ServerConfig, serve_agent};
use serde_json::json;

use crate::client::request;
use crate::server::{SLOTS, Server};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[test]
fn capacity_tells_slots_queue_and_state() {
    let server = Server::start();
    let idle = server.get("/capacity").json();
    assert_eq!(
        (&idle["state"], &idle["slots_free"], &idle["queue_depth"]),
        (&json!("ready"), &json!(SLOTS), &json!(0)),
        "{idle}"
    );
    assert_eq!(idle["tokens_per_second"], json!(null));
    *server.backend.state.lock().unwrap() = BackendState::Failed("no engine".into());
    let failed = server.get("/capacity").json();
    assert_eq!(
        (&failed["state"], &failed["slots_free"], &failed["reason"]),
        (&json!("failed"), &json!(0), &json!("no engine"))
    );
}

#[test]
fn the_load_is_told_only_to_those_who_ask() {
    let server = Server::start();
    server.says("x");
    let ask = |format: Option<&str>| {
        let headers: Vec<_> = format
            .map(|format| ("Endpoint-Load-Metrics-Format", format))
            .into_iter()
            .collect();
        let body = br#"{"prompt":"p"}"#;
        let reply = request(server.address, "POST", "/completion", &headers, body);
        assert_eq!(reply.status, 200);
        reply.header("endpoint-load-metrics").map(str::to_owned)
    };
    assert_eq!(ask(None), None);
    assert_eq!(ask(Some("protobuf")), None);
    assert!(
        ask(Some("text"))
            .unwrap()
            .starts_with("TEXT application_utilization=")
    );
    let json = ask(Some("JSON")).unwrap();
    let report: serde_json::Value =
        serde_json::from_str(json.strip_prefix("JSON ").unwrap()).unwrap();
    assert!(report["rps_fractional"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn agents_hear_of_draining() {
    let server = Server::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    server
        .runtime
        .spawn(serve_agent(listener, Arc::clone(&server.app)));
    let ask = |says: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(says).unwrap();
        let mut line = String::new();
        stream.read_to_string(&mut line).unwrap();
        line
    };
    assert_eq!(ask(b""), format!("up ready 10% maxconn:{}\n", SLOTS + 1));
    assert_eq!(ask(b"state\n"), ask(b""));
    *server.backend.state.lock().unwrap() = BackendState::Loading;
    assert!(ask(b"").starts_with("down #"));
    server.app.drain(Duration::from_secs(5));
    assert_eq!(ask(b""), "drain\n");
}

#[test]
fn traces_go_on_with_a_span_of_ours() {
    let server = Server::start();
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let answer = |value: &str| {
        let headers = [("traceparent", value)];
        let reply = request(server.address, "GET", "/health", &headers, b"");
        reply.header("traceparent").map(str::to_owned)
    };
    let ours = answer(&parent).unwrap();
    assert!(ours.starts_with(&format!("00-{TRACE}-")), "{ours}");
    assert_ne!(ours, parent);
    assert_eq!(answer("00-nothing"), None);
}

#[test]
fn durations_count_whole_answers_by_route() {
    let server = Server::with(ServerConfig {
        api_prefix: "/llm".into(),
        ..ServerConfig::default()
    });
    server.says("four");
    let body = json!({ "prompt": "p", "stream": true });
    assert_eq!(server.post("/llm/completion", body).status, 200);
    assert_eq!(server.get("/llm/made-up").status, 404);
    let counted = |server: &Server| {
        let metrics = server.get("/llm/metrics").text();
        let has = |line: &str| metrics.contains(line);
        has("bitnet_request_duration_seconds_count{route=\"/completion\",status=\"2xx\"} 1\n")
            && has("bitnet_request_duration_seconds_count{route=\"other\",status=\"4xx\"} 1\n")
            && has("bitnet_queue_wait_seconds_count 1\n")
            && has("bitnet_queue_bound 8\n")
            && has("bitnet_plan_info{model=")
    };
    server.until("both are counted", counted);
}
