//! The HTTP API over a scripted backend, through real sockets.

mod backend;
mod bad_input;
mod client;
mod life;
mod server;
mod shapes;
mod streams;
