//! Getting models: the catalogue of known ones, the hub's protocol, downloads, the cache on disk, and the commands over them.
//!
//! Everything blocks; downloads use plain threads. [`mod@reference`] says what was asked for, [`hub`] what the hub has, [`cache`]
//! and [`place`] where it belongs, [`download`] brings the bytes, [`pull`] puts these together.

pub(crate) mod cache;
pub(crate) mod catalogue;
pub(crate) mod digest;
mod download;
pub(crate) mod error;
pub(crate) mod http;
mod hub;
pub(crate) mod list;
pub(crate) mod locate;
mod part;
mod place;
mod progress;
pub(crate) mod pull;
pub(crate) mod reference;
mod retry;
pub(crate) mod setup;

/// Megabytes and gigabytes as people say them, `1.19 GB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
