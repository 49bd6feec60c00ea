//! What happens to every request before and after its route: number, log line, CORS, keys, readiness, `Server` header.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use tower::ServiceExt;
use tracing::{Instrument, Span};

use crate::app::App;
use crate::config::Cors;
use crate::error::ApiError;
use crate::metrics::Kind;
use crate::serve::Visit;
use crate::trace::{TRACEPARENT, Trace};
use crate::visited::Visited;
use crate::{auth, body, capacity, page, proxy, reply};

/// Log target of the request lines.
const ACCESS: &str = "bitnet_server::access";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken over from a client.
const REQUEST_ID_BYTES: usize = 64;
/// Longest path and query: that of a slot's or a model's name.
const TARGET_BYTES: usize = 8 << 10;
/// Some scripts look for it; the program's own name is in `/props`.
const SERVER: HeaderValue = HeaderValue::from_static("llama.cpp");

/// Answers one request.
pub(crate) async fn handle(visit: Visit, request: Request<Incoming>) -> Response {
    let Visit {
        app,
        router,
        crowded,
    } = visit;
    let started = Instant::now();
    let mut request = body::may_stay_unread(request);
    trim_trailing_slash(&mut request);
    let id = request_id(&request);
    let trace = Trace::of(request.headers());
    if let Some(trace) = &trace {
        request.headers_mut().insert(TRACEPARENT, trace.header());
    }
    let span = span(&id, trace.as_ref());
    let load_format = capacity::format_asked(request.headers());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());

    let mut response = if method == Method::OPTIONS {
        preflight(&app.config.cors, &request)
    } else if let Err(error) = admit(&app, &request, crowded) {
        error.into_response()
    } else {
        let answer = no_panic(router.oneshot(request));
        answer.instrument(span.clone()).await
    };

    let headers = response.headers_mut();
    headers.insert(header::SERVER, SERVER);
    headers.insert(REQUEST_ID, id.clone());
    if let Some(trace) = &trace {
        headers.insert(TRACEPARENT, trace.header());
    }
    capacity::report(&app, load_format.as_ref(), headers);
    allow_origin(&app.config.cors, origin, headers);
    let visitor = Visitor { id, trace };
    visitor.log(&method, &path, response.status(), started.elapsed());
    let route = path.strip_prefix(app.config.api_prefix.as_str());
    let kind = Kind::of(route.unwrap_or(&path), response.status().as_u16());
    response.map(|inner| {
        Body::new(Visited {
            inner,
            span,
            app,
            kind,
            started,
        })
    })
}

/// Names the request in log lines of its making.
fn span(id: &HeaderValue, trace: Option<&Trace>) -> Span {
    let id = id.to_str().unwrap_or_default();
    match trace {
        Some(trace) => tracing::info_span!("request", id, trace = %trace.id),
        None => tracing::info_span!("request", id),
    }
}

/// Who asked.
struct Visitor {
    id: HeaderValue,
    trace: Option<Trace>,
}

impl Visitor {
    /// One line per request, at its head; those of probes only for who wants details.
    fn log(&self, method: &Method, path: &str, status: StatusCode, took: Duration) {
        let id = self.id.to_str().unwrap_or_default();
        let trace = match &self.trace {
            Some(trace) => format!(", trace {}", trace.id),
            None => String::new(),
        };
        let (status, ms) = (status.as_u16(), took.as_millis() as u64);
        match path {
            "/health" | "/v1/health" | "/livez" | "/readyz" | "/metrics" | "/slots" | "/status"
            | "/capacity"
                if status == 200 =>
            {
                tracing::debug!(target: ACCESS, "{method} {path} {status} in {ms} ms, request {id}{trace}");
            }
            _ => {
                tracing::info!(target: ACCESS, "{method} {path} {status} in {ms} ms, request {id}{trace}");
            }
        }
    }
}

/// Keys first, then readiness: a stranger learns nothing about the state.
fn admit(app: &App, request: &Request<Body>, crowded: bool) -> Result<(), ApiError> {
    let target = request.uri().path_and_query();
    if target.is_some_and(|target| target.as_str().len() > TARGET_BYTES) {
        return Err(ApiError::uri_too_long(TARGET_BYTES));
    }
    let path = request.uri().path();
    let route = path
        .strip_prefix(app.config.api_prefix.as_str())
        .unwrap_or(path);
    let public = match route {
        "/health" | "/v1/health" | "/livez" | "/readyz" | "/" | "" => true,
        "/models" | "/v1/models" => app.config.public_models,
        route => {
            route.starts_with(page::FILES)
                || (app.is_proxy() && proxy::is_page_file(request.method(), route))
        }
    };
    let file = page::is_in_folder(app, request.method(), route);
    let is_open = public || file;
    if !is_open && !auth::allows(&app.config.api_keys, request.headers()) {
        return Err(ApiError::unauthorized());
    }
    let always = file
        || route.starts_with(page::FILES)
        || matches!(
            route,
            "/health"
                | "/v1/health"
                | "/livez"
                | "/readyz"
                | "/"
                | ""
                | "/metrics"
                | "/status"
                | "/capacity"
                | "/drain"
                | "/reload"
        );
    if crowded && !always {
        return Err(ApiError::too_many_connections());
    }
    if !always {
        app.open()?;
    }
    Ok(())
}

/// A bug in one handler costs that request a 500, not the connection its answer.
async fn no_panic<E>(handler: impl Future<Output = Result<Response, E>>) -> Response {
    let mut handler = pin!(handler);
    let outcome =
        poll_fn(
            |cx| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(result.ok()),
                Err(_) => Poll::Ready(None),
            },
        );
    outcome
        .await
        .unwrap_or_else(|| ApiError::server("internal error").into_response())
}

fn preflight(cors: &Cors, request: &Request<Body>) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    let methods = cors
        .methods
        .as_deref()
        .unwrap_or("GET, POST, DELETE, OPTIONS");
    if let Ok(methods) = HeaderValue::from_str(methods) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    }
    // `*` would not cover Authorization in strict browsers, so what was asked for is echoed.
    let allowed = cors
        .headers
        .as_deref()
        .and_then(|list| HeaderValue::from_str(list).ok());
    let asked = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        .cloned();
    let allowed = allowed.or(asked).unwrap_or(HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    response
}

fn allow_origin(cors: &Cors, origin: Option<HeaderValue>, headers: &mut axum::http::HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else { return };
    if !origin_allowed(cors, origin.to_str().unwrap_or_default()) {
        return;
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id, retry-after"),
    );
    if !cors.no_credentials {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
    }
}

fn origin_allowed(cors: &Cors, origin: &str) -> bool {
    if cors.origins.is_empty() {
        return true;
    }
    cors.origins.iter().any(|rule| match rule.as_str() {
        "*" => true,
        "localhost" => is_local(origin),
        rule => rule == origin,
    })
}

fn is_local(origin: &str) -> bool {
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.ends_with(".localhost") || host == "::1" || host.starts_with("127.")
}

/// `/health/` is `/health`.
fn trim_trailing_slash(request: &mut Request<Body>) {
    let uri = request.uri();
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() || trimmed.len() == path.len() {
        return;
    }
    let target = match uri.query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    if let Ok(uri) = target.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
}

/// The client's number for this request when it is harmless in a log line, else a fresh one.
fn request_id(request: &Request<Body>) -> HeaderValue {
    let harmless = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=REQUEST_ID_BYTES).contains(&bytes.len())
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(b))
    };
    let given = request.headers().get(REQUEST_ID).filter(harmless).cloned();
    given.unwrap_or_else(|| {
        HeaderValue::from_str(&reply::random_id(16)).unwrap_or(HeaderValue::from_static("0"))
    })
}

/// 404 for anything that is no route.
pub(crate) async fn not_found() -> ApiError {
    ApiError::not_found()
}

/// 405 for a route asked with another method.
pub(crate) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let mut response = ApiError::method_not_allowed(method.as_str(), uri.path()).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let any = Cors::default();
        let local = Cors {
            origins: vec!["localhost".into(), "https://a.example".into()],
            ..Cors::default()
        };
        assert!(origin_allowed(&any, "null") && origin_allowed(&any, "https://b.example"));
        for (origin, allowed) in [
            ("http://localhost:3000", true),
            ("http://127.0.0.1", true),
            ("http://[::1]:80", true),
            ("https://a.example", true),
            ("https://b.example", false),
            ("http://localhost.b.example", false),
            ("null", false),
        ] {
            assert_eq!(origin_allowed(&local, origin), allowed, "{origin}");
        }
    }
}
