//! Frames between the two processes, in both directions. What is read can be written and read again.
#![no_main]

use bitnet_model::protocol::{FromEngine, ToEngine, read_frame, write_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    while let Ok(Some(frame)) = read_frame::<ToEngine>(&mut rest) {
        let mut again = Vec::new();
        write_frame(&mut again, &frame).expect("it came in a frame");
        read_frame::<ToEngine>(&mut again.as_slice()).expect("what was written is read");
    }
    let mut rest = data;
    while let Ok(Some(frame)) = read_frame::<FromEngine>(&mut rest) {
        let mut again = Vec::new();
        write_frame(&mut again, &frame).expect("it came in a frame");
        read_frame::<FromEngine>(&mut again.as_slice()).expect("what was written is read");
    }
});
