//! A BitNet b1.58 engine: GGUF file in, tokens out. Threads and files, no sockets, no async.

pub mod chores;
pub mod convert;
mod cpu_time;
pub mod engine;
pub mod facts;
pub mod gguf;
pub mod grammar;
pub mod graph;
pub mod inspect;
pub mod kv;
pub mod os;
pub mod perplexity;
pub mod pool;
pub mod pooling;
pub mod protocol;
pub mod relocate;
pub mod sampler;
mod sampler_maker;
pub mod scheduler;
pub mod screening;
pub mod selftest;
pub mod slot_file;
mod speculation;
pub mod synth;
pub mod tensors;
pub mod tokenizer;
pub mod weights;
