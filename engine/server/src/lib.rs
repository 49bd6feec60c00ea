//! llama-server's and OpenAI's HTTP API over a [`backend::Backend`]. Async lives here and nowhere else.

pub mod backend;
