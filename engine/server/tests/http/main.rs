//! The HTTP API over a scripted backend, through real sockets.

mod backend;
mod bad_input;
mod capacity;
mod client;
mod dialects;
mod errors;
mod life;
mod limits;
mod openapi;
mod server;
mod shapes;
mod streams;
mod tools;
