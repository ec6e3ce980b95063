//! An upstream that speaks exact bytes: a script per connection, with what
//! it read kept for the test.
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::TlsAcceptor;

use super::{NAME, SOON, TestCa, ca::Leaf, own_listener, show};

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

#[derive(Default)]
struct Shared {
    heads: Mutex<Vec<String>>,
    notes: Mutex<Vec<String>>,
    changed: Condvar,
    accepted: AtomicUsize,
}

/// One accepted connection.
pub struct WireConn {
    stream: Box<dyn Stream>,
    /// The same socket, for options.
    socket: std::net::TcpStream,
    read: Vec<u8>,
    shared: Arc<Shared>,
    /// From 0, in order of acceptance.
    pub number: usize,
    pub alpn: Option<String>,
    pub peer: SocketAddr,
}

impl WireConn {
    async fn more(&mut self) -> io::Result<usize> {
        let mut buffer = vec![0; 65_536];
        let read = self.stream.read(&mut buffer).await?;
        self.read.extend_from_slice(&buffer[..read]);
        Ok(read)
    }

    /// Reads up to and with the next `mark`; what came before is kept among
    /// the heads.
    pub async fn until(&mut self, mark: &str) -> io::Result<String> {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|part| part == mark.as_bytes()) {
                let head: Vec<u8> = self.read.drain(..at + mark.len()).collect();
                self.shared.heads.lock().expect("not poisoned").push(show(&head));
                self.shared.changed.notify_all();
                return Ok(show(&head));
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// One request's head.
    pub async fn head(&mut self) -> io::Result<String> {
        self.until("\r\n\r\n").await
    }

    pub async fn exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read.drain(..length).collect())
    }

    /// Whatever comes next; empty at the end.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.read.is_empty() {
            self.more().await?;
        }
        Ok(std::mem::take(&mut self.read))
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// Holds back what is sent from here on, so that it leaves together with
    /// the connection's end.
    pub fn cork(&self) {
        SockRef::from(&self.socket).set_tcp_cork(true).expect("corking a TCP socket");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Ends it in order (with close_notify where there is TLS).
    pub async fn close(mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Ends it with a FIN alone, as a peer that TLS calls truncated.
    pub fn cut(self) {
        drop(self);
    }

    /// Waits until the client side resets the connection, without reading any
    /// of what it has said.
    ///
    /// # Errors
    /// None came in time.
    pub async fn reset_comes(&mut self) -> io::Result<io::Error> {
        let socket = TcpStream::from_std(self.socket.try_clone()?)?;
        tokio::time::timeout(SOON, socket.ready(Interest::ERROR)).await??;
        self.socket.take_error()?.ok_or_else(|| io::Error::other("the socket failed without an error"))
    }

    /// Keeps a text among the heads.
    pub fn keep(&self, text: &str) {
        self.shared.heads.lock().expect("not poisoned").push(text.into());
        self.shared.changed.notify_all();
    }

    /// Something for the test to wait for.
    pub fn note(&self, text: &str) {
        self.shared.notes.lock().expect("not poisoned").push(text.into());
        self.shared.changed.notify_all();
    }

    /// Waits until the client side is gone.
    pub async fn ended(&mut self) -> io::Result<()> {
        while self.more().await? != 0 {
            self.read.clear();
        }
        Ok(())
    }
}

pub struct Wire {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// How a wire upstream presents itself.
#[derive(Clone, Copy)]
pub struct Face<'a> {
    pub port: u16,
    /// `None` speaks no TLS.
    pub leaf: Option<Leaf>,
    pub names: &'a [&'a str],
    pub alpn: &'a [&'a str],
}

impl Default for Face<'_> {
    fn default() -> Self {
        Self { port: 443, leaf: Some(Leaf::Good), names: &[NAME], alpn: &[] }
    }
}

type Script = dyn Fn(WireConn) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> + Send + Sync;

impl Wire {
    /// TLS, good certificate, no ALPN answer: HTTP/1.1 by the byte.
    pub fn start<F>(ca: &TestCa, script: impl Fn(WireConn) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::with(ca, Face::default(), script)
    }

    pub fn with<F>(ca: &TestCa, face: Face<'_>, script: impl Fn(WireConn) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = own_listener(face.port);
        let address = listener.local_addr().expect("a bound address");
        listener.set_nonblocking(true).expect("non-blocking");
        let tls = face.leaf.map(|leaf| TlsAcceptor::from(ca.server(leaf, face.names, &[address.ip()], face.alpn)));
        let shared = Arc::new(Shared::default());
        let script: Arc<Script> = Arc::new(move |conn| Box::pin(script(conn)));
        let runtime = runtime();
        let state = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("registering the listener");
            loop {
                let Ok((stream, peer)) = listener.accept().await else { return };
                let number = state.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, peer, number, tls.clone(), Arc::clone(&state), Arc::clone(&script)));
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Heads read so far, as text.
    pub fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().expect("not poisoned").clone()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    pub fn notes(&self) -> Vec<String> {
        self.shared.notes.lock().expect("not poisoned").clone()
    }

    /// Waits for a note that holds `part`.
    #[track_caller]
    pub fn wait_for(&self, part: &str) -> String {
        let end = Instant::now() + super::SOON;
        let mut notes = self.shared.notes.lock().expect("not poisoned");
        loop {
            if let Some(note) = notes.iter().find(|note| note.contains(part)) {
                return note.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the upstream never noted '{part}', only {notes:?}");
            notes = self.shared.changed.wait_timeout(notes, left).expect("not poisoned").0;
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    number: usize,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    script: Arc<Script>,
) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = stream.into_std() else { return };
    let (Ok(socket), Ok(stream)) = (stream.try_clone(), TcpStream::from_std(stream)) else { return };
    let mut alpn = None;
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => {
                alpn = stream.get_ref().1.alpn_protocol().map(show);
                Box::new(stream)
            }
            Err(error) => {
                shared.notes.lock().expect("not poisoned").push(format!("handshake: {error}"));
                shared.changed.notify_all();
                return;
            }
        },
    };
    let notes = Arc::clone(&shared);
    let conn = WireConn { stream, socket, read: Vec::new(), shared, number, alpn, peer };
    if let Err(error) = script(conn).await {
        notes.notes.lock().expect("not poisoned").push(format!("script: {error}"));
        notes.changed.notify_all();
    }
}

/// A runtime for one server.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("test upstream")
        .enable_all()
        .build()
        .expect("a runtime")
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
