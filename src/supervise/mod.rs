//! Keeps an engine process alive and the requests with it: the table of its life, its process, and the broker between
//! HTTP and engine.

pub(crate) mod broker;
pub(crate) mod child;
pub(crate) mod exit;
pub(crate) mod log_tail;
pub(crate) mod state;
