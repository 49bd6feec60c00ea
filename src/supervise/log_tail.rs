//! The end of an engine's log: one thread reads its pipe, hands each line on, and keeps the last ones for the crash report.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Log lines kept for the crash report.
const TAIL_LINES: usize = 200;
/// Longest log line relayed in one piece, in bytes.
const LINE_BYTES: u64 = 16 << 10;
/// How long the last log lines of a dead engine are waited for.
const TAIL_WAIT: Duration = Duration::from_millis(500);

/// The last lines of an engine's log.
pub(crate) struct LogTail {
    lines: Arc<Mutex<VecDeque<String>>>,
    closed: Receiver<()>,
}

impl LogTail {
    /// Hands every line to `repeat`, from a thread of its own that ends with the pipe.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn follow(
        pipe: impl Read + Send + 'static,
        repeat: fn(&str),
    ) -> io::Result<LogTail> {
        let lines = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_LINES)));
        let (close, closed) = mpsc::channel();
        let kept = Arc::clone(&lines);
        thread::Builder::new()
            .name("engine-log".into())
            .spawn(move || {
                relay(BufReader::new(pipe), &kept, repeat);
                let _ = close.send(());
            })?;
        Ok(LogTail { lines, closed })
    }

    /// What was said last, after the process has ended.
    pub(crate) fn finish(&self) -> Vec<String> {
        let _ = self.closed.recv_timeout(TAIL_WAIT);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.drain(..).collect()
    }
}

fn relay(mut log: impl BufRead, kept: &Mutex<VecDeque<String>>, repeat: fn(&str)) {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match log.by_ref().take(LINE_BYTES).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = text.trim_end();
        if line.is_empty() {
            continue;
        }
        repeat(line);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == TAIL_LINES {
            kept.pop_front();
        }
        kept.push_back(line.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let text: String = (0..TAIL_LINES + 50)
            .map(|n| format!("INFO {n}\n\n"))
            .collect();
        let tail = LogTail::follow(io::Cursor::new(text), |_| {}).unwrap();
        let kept = tail.finish();
        assert_eq!(kept.len(), TAIL_LINES);
        assert_eq!(kept[0], "INFO 50");
    }
}
