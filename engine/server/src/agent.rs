//! The agent check: whoever connects gets one line of capacity, whatever it says itself. HAProxy asks every second or two.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::capacity::Capacity;

/// A conversation ends after this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Conversations at a time; further ones are closed.
const CONVERSATIONS: usize = 32;
/// Pause after `accept` failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Answers agent checks for as long as it is polled; while draining, too.
///
/// # Errors
/// When the socket can't be handed to the runtime.
pub async fn serve_agent(listener: std::net::TcpListener, app: Arc<App>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if conversations.len() < CONVERSATIONS => {
                    let line = Capacity::now(&app).agent_line();
                    conversations.spawn(timeout(PATIENCE, tell(stream, line)));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!("the agent check's accept failed: {error}");
                    sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = conversations.join_next() => {}
        }
    }
}

/// Reads on until the other side is done: closing before it is could take the line with it.
async fn tell(mut stream: TcpStream, line: String) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    let mut nobody_cares = [0; 256];
    while stream.read(&mut nobody_cares).await? > 0 {}
    Ok(())
}
