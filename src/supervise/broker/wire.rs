//! The two threads of an engine's control socket: one writes frames, one reads them.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::thread;

use bitnet_model::protocol::{ToEngine, read_frame, write_frame};

use super::Message;

/// A thread that writes frames until the sender is dropped or the engine is gone. Its queue is bounded by the slots:
/// one submission and one cancellation each.
pub(super) fn write_frames(mut control: UnixStream) -> io::Result<Sender<ToEngine>> {
    let (sender, frames) = mpsc::channel::<ToEngine>();
    let write = move || {
        for frame in frames {
            if let Err(error) = write_frame(&mut control, &frame) {
                tracing::debug!("cannot write to the engine: {error}");
                return;
            }
        }
    };
    thread::Builder::new()
        .name("engine-write".into())
        .spawn(write)?;
    Ok(sender)
}

/// A thread that forwards frames until the engine closes its end.
pub(super) fn read_frames(
    control: UnixStream,
    generation: u64,
    inbox: Sender<Message>,
) -> io::Result<()> {
    let read = move || {
        let mut control = BufReader::new(control);
        loop {
            match read_frame(&mut control) {
                Ok(Some(frame)) => {
                    if inbox.send(Message::Frame(generation, frame)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!("cannot read from the engine: {error}");
                    break;
                }
            }
        }
        let _ = inbox.send(Message::Closed(generation));
    };
    thread::Builder::new()
        .name("engine-read".into())
        .spawn(read)?;
    Ok(())
}
