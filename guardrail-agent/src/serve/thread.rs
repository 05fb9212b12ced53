//! The thread of the listeners, with a runtime of its own.
//!
//! The observer's task may work for seconds without a pause: a large graph is copied, a list of ten
//! thousand pods is applied. The kubelet's probes, TLS handshakes and reviews of tokens do not wait
//! for it. What belongs to a listener (its socket, its connections, the client that asks for
//! reviews) is made on this thread, because a runtime drives only what was made on it.

use std::{io, thread};

use tokio::{runtime, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A thread that runs what is given to it, until this is dropped.
#[derive(Debug)]
pub struct ServerThread {
    runtime: runtime::Handle,
    _end: DropGuard,
}

impl ServerThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread or no file descriptor.
    pub fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        thread::Builder::new().name("http".to_owned()).spawn(move || runtime.block_on(ended.cancelled()))?;
        Ok(Self { runtime: handle, _end: end.drop_guard() })
    }

    /// Runs `work` on the thread.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Runs `work` on the thread and waits for its outcome.
    ///
    /// # Errors
    /// If `work` panics.
    pub async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
        self.spawn(work).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        time::Duration,
    };

    use tokio::{
        net::TcpListener,
        sync::{mpsc, watch},
    };

    use super::*;
    use crate::{
        http::{Readiness, router},
        serve::{Limits, serve},
    };

    #[tokio::test]
    async fn probes_are_answered_while_the_runtime_of_the_observer_is_busy() {
        let server = ServerThread::start().unwrap();
        let listener = server.run(TcpListener::bind("127.0.0.1:0")).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let (_readiness, ready) = watch::channel(Readiness::default());
        let (queries, _asked) = mpsc::channel(1);
        let router = router(queries, ready, None);
        server.spawn(serve(listener, None, router, Limits::default(), CancellationToken::new()));
        // All that follows blocks the only thread of this runtime.
        for (path, status) in [("/healthz", "200"), ("/readyz", "503")] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn the_thread_ends_with_what_holds_it() {
        let server = ServerThread::start().unwrap();
        let work = server.spawn(std::future::pending::<()>());
        drop(server);
        assert!(work.await.unwrap_err().is_cancelled());
    }
}
