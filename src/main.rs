//! `bitnet-launch`: parse, dispatch, exit code.

fn main() {}
