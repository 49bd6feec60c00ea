//! The engine as its server sees it: frames in, frames out, end of file ends it.
#![cfg(unix)]

mod common;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bitnet_model::engine::{self, RunError};
use bitnet_model::protocol::{
    EngineConfig, Finish, FromEngine, ModelSource, Submit, ToEngine, read_frame, write_frame,
};
use common::{config, model, prompt, submit};

struct Process {
    socket: UnixStream,
    thread: JoinHandle<Result<(), RunError>>,
}

impl Process {
    fn start(first: &ToEngine) -> Self {
        let (socket, other) = UnixStream::pair().unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let reader = other.try_clone().unwrap();
        let thread = thread::spawn(move || engine::run(reader, other, || None, |_| {}));
        let mut process = Process { socket, thread };
        process.send(first);
        process
    }

    fn send(&mut self, message: &ToEngine) {
        write_frame(&mut self.socket, message).unwrap();
    }

    fn receive(&mut self) -> FromEngine {
        read_frame(&mut self.socket).unwrap().expect("a frame")
    }

    /// Closes the control stream.
    fn close(self) -> Result<(), RunError> {
        drop(self.socket);
        self.thread.join().expect("no panic")
    }
}

fn start(config: EngineConfig) -> ToEngine {
    ToEngine::Start(Box::new(config))
}

#[test]
fn serves_frames_until_end_of_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = Process::start(&start(config(&model(directory.path(), "tiny"))));
    assert!(matches!(process.receive(), FromEngine::Ready { .. }));
    assert_eq!(process.receive(), FromEngine::Settled);
    process.send(&ToEngine::Submit(Box::new(submit(5, &prompt(1, 20)))));
    let (mut n_tokens, mut steps_told) = (0, 0);
    loop {
        match process.receive() {
            FromEngine::Token { id: 5, .. } => n_tokens += 1,
            FromEngine::Prefill {
                id: 5,
                slot: 0,
                total: 20,
                ..
            } => {}
            FromEngine::Heartbeat { steps } => steps_told = steps,
            FromEngine::Done { id: 5, finish } => {
                assert!(steps_told >= 12, "{steps_told} steps are known at the end");
                assert_eq!(finish, Finish::Limit);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(n_tokens, 12);
    process.send(&ToEngine::Submit(Box::new(Submit {
        max_tokens: 1_000_000,
        ..submit(6, &[1])
    })));
    process.send(&ToEngine::Cancel { id: 6 });
    while !matches!(process.receive(), FromEngine::Done { id: 6, .. }) {}
    process.close().unwrap();
}

#[test]
fn end_of_file_ends_it_in_the_middle_of_work() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(&model(directory.path(), "tiny"));
    config.slot_context = 100_000;
    let mut process = Process::start(&start(config));
    process.receive();
    process.send(&ToEngine::Submit(Box::new(Submit {
        max_tokens: 90_000,
        ..submit(1, &prompt(1, 50))
    })));
    while !matches!(process.receive(), FromEngine::Token { .. }) {}
    let began = std::time::Instant::now();
    let _ = process.close();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn end_of_file_before_the_start_is_a_quiet_end() {
    let (socket, other) = UnixStream::pair().unwrap();
    drop(socket);
    engine::run(other.try_clone().unwrap(), other, || None, |_| {}).unwrap();
}

#[test]
fn what_cannot_be_loaded_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let good = model(directory.path(), "tiny");
    let broken = directory.path().join("broken.gguf");
    std::fs::write(&broken, &std::fs::read(&good).unwrap()[..5000]).unwrap();
    let with = |change: &dyn Fn(&mut EngineConfig)| {
        let mut config = config(&good);
        change(&mut config);
        config
    };
    let cases: [(EngineConfig, &str); 8] = [
        (
            config(Path::new("/nowhere/model.gguf")),
            "cannot load `/nowhere/model.gguf`: ",
        ),
        (config(&broken), "cannot load `"),
        (
            with(&|config| config.kernel = "i2_s/mmx".to_owned()),
            "`i2_s/mmx` is no kernel; there are ",
        ),
        (
            with(&|config| config.decode_cpus.clear()),
            "`decode_cpus` is 0, expected 1 to ",
        ),
        (
            with(&|config| config.slots = 0),
            "`slots` is 0, expected 1 to ",
        ),
        (
            with(&|config| config.slot_context = usize::MAX),
            "`slot_context` is 18446744073709551615, ",
        ),
        (
            with(&|config| config.model = ModelSource::Demo),
            "this binary has no demo model",
        ),
        (
            with(&|config| (config.pin, config.decode_cpus) = (true, vec![60_000])),
            "cpu 60000 can't be used by this process",
        ),
    ];
    for (config, expected) in cases {
        let mut process = Process::start(&start(config));
        match process.receive() {
            FromEngine::Failed { message, .. } => {
                assert!(message.starts_with(expected), "{message}")
            }
            other => panic!("{other:?} instead of {expected}"),
        }
        let ended = process.thread.join().expect("no panic");
        assert!(
            matches!(ended, Err(RunError::Load(_))),
            "it ends after `failed`, without waiting for the server"
        );
    }
}

#[test]
fn a_stream_that_is_no_protocol_ends_it_with_an_error() {
    let process = Process::start(&ToEngine::Cancel { id: 1 });
    assert!(matches!(process.close(), Err(RunError::NoStart)));
    let directory = tempfile::tempdir().unwrap();
    let mut process = Process::start(&start(config(&model(directory.path(), "tiny"))));
    process.receive();
    std::io::Write::write_all(&mut process.socket, b"\xff\xff\xff\xff").unwrap();
    assert!(matches!(process.close(), Err(RunError::Control(_))));
}
