//! The web page at `/` and its files under `/ui/`, all inside the binary; or the files of a folder in its place.
//!
//! No build step and no requests to other hosts:
//! the policy sent with the page allows this server only, and no script in the page's own text.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::handler::HandlerWithoutStateExt;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use tower::{Service, ServiceBuilder};
use tower_http::services::ServeDir;

use crate::app::App;
use crate::error::ApiError;
use crate::{front, routes};

/// Where the page's files lie, after the configured prefix.
pub(crate) const FILES: &str = "/ui/";

const INDEX: &str = include_str!("ui/index.html");
/// Stands in the page for the path its links start from.
const BASE: &str = "{{base}}";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
/// Name, content type, text.
const ASSETS: &[(&str, &str, &str)] = &[
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("ui/style.css"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
    ("app.js", JAVASCRIPT, include_str!("ui/app.js")),
    ("chat.js", JAVASCRIPT, include_str!("ui/chat.js")),
    ("api.js", JAVASCRIPT, include_str!("ui/api.js")),
    ("dom.js", JAVASCRIPT, include_str!("ui/dom.js")),
    ("markdown.js", JAVASCRIPT, include_str!("ui/markdown.js")),
    ("panel.js", JAVASCRIPT, include_str!("ui/panel.js")),
    ("store.js", JAVASCRIPT, include_str!("ui/store.js")),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(crate) async fn page(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.config.page {
        return Err(ApiError::not_found());
    }
    let base = format!("{}/", app.config.api_prefix);
    let text = INDEX.replacen(BASE, &escape(&base), 1);
    Ok(file("text/html; charset=utf-8", text))
}

/// One of its files.
pub(crate) async fn asset(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    match found.filter(|_| app.config.page) {
        Some((_, kind, text)) => Ok(file(kind, (*text).to_owned())),
        None => Err(ApiError::not_found()),
    }
}

/// The files of a folder, `index.html` for the folders in it. Paths can't lead out of it.
pub(crate) fn folder(
    path: &std::path::Path,
) -> impl Service<Request<Body>, Response = Response, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    let files = ServeDir::new(path)
        .call_fallback_on_method_not_allowed(true)
        .fallback(front::not_found.into_service());
    ServiceBuilder::new()
        .map_response(|response: Response<_>| {
            let mut response = response.map(Body::new);
            let headers = response.headers_mut();
            let nosniff = HeaderValue::from_static("nosniff");
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
            response
        })
        .service(files)
}

/// Whether a request is for a file of that folder: then it needs no key, as the page needs none.
pub(crate) fn is_in_folder(app: &App, method: &Method, route: &str) -> bool {
    let reserved = app.reserved.get_or_init(routes::first_parts);
    let first = route.trim_start_matches('/').split('/').next();
    app.config.page
        && app.config.static_path.is_some()
        && (method == Method::GET || method == Method::HEAD)
        && first.is_some_and(|first| !reserved.contains(first))
}

fn file(kind: &'static str, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        // A newer program behind the same address brings newer files.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            HeaderName::from_static("referrer-policy"),
            HeaderValue::from_static("no-referrer"),
        ),
    ];
    (headers, text).into_response()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_only_files_there_are() {
        let named = |mark: &str| {
            let rest = INDEX.split(mark).skip(1);
            rest.map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        let mut files = named("href=\"ui/");
        files.extend(named("src=\"ui/"));
        assert!(files.len() >= 3, "{files:?}");
        for name in files {
            assert!(ASSETS.iter().any(|(known, ..)| *known == name), "{name}");
        }
        assert_eq!(INDEX.matches(BASE).count(), 1);
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_runs_inline() {
        let no_inline = ["<style", "style=\"", "onclick", "onload", "javascript:"];
        for mark in no_inline {
            assert!(!INDEX.contains(mark), "{mark}");
        }
        for (name, _, text) in ASSETS {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            for mark in [
                "//cdn",
                "@import",
                "url(http",
                "src=\"http",
                "innerHTML",
                "eval(",
            ] {
                assert!(!elsewhere.contains(mark), "{name}: {mark}");
            }
        }
    }
}
