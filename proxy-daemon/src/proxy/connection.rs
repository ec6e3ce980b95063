//! One redirected connection, from its accept to its end.
use std::{
    ffi::OsStr,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{client::TlsStream as UpstreamStream, server::TlsStream};

use super::{
    Answers, Proxy,
    answers::Connector,
    exchange::{self, Peer},
    failure,
    findings::{Answer, Place},
    h1::{self, End},
    h2,
    learned::{AT_ONCE, Reaction},
    socket, tunnel,
};
use crate::{
    flow::{Failure, Moment},
    process::{self, Process},
    redirect::Network,
    retry::{ConnectionKind, Passed, Problem},
    tls::{self, Asked, Hello, Opaque, Witness, hello},
};

/// A client that has said nothing for so long may wait for its server to
/// speak first: the upstream is then connected, and whoever speaks decides.
const SILENCE: Duration = Duration::from_millis(250);
/// How long the goodbyes of a finished connection may take to be sent.
const GOODBYE: Duration = Duration::from_secs(10);

/// Why names are left alone that the user has named, or not named.
const PASSED_BY: &str = "--passthrough or --intercept says so";
const REFUSED_BY_CLIENT: &str = "the client refused the certificate";
/// Why a client is left alone that will not trust us.
const LEARNED: &str = "the client refuses retryscope's certificate for it";

/// Why some are left alone that we could not serve.
const OLD_CLIENT: &str = "the client offers no TLS version or cipher that retryscope speaks";
const OWN_CERTIFICATE: &str = "the upstream asks for a client certificate (--client-cert shows one)";
const CHANGED_MIND: &str = "the client showed a certificate";

/// How long an upstream that has asked for a client certificate may take to
/// judge the answer: four times what its handshake took, but no less and no
/// more than this. Once it has, it is not waited for again.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a connection turned out to be.
enum Class {
    Hello(Box<Hello>),
    Opaque(Opaque),
    /// The client has left without a word.
    Gone,
}

pub(super) async fn serve(proxy: &Arc<Proxy>, mut client: TcpStream, drain: watch::Receiver<bool>) {
    let Some(redirected) = proxy.gate.origin_of(client.as_fd()) else {
        proxy.counters.strays.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("closed a connection that no redirect explains");
        return failure::reset_on_close(&client);
    };
    if let Some(beacon) = proxy.beacon.as_ref().filter(|beacon| beacon.address == redirected.origin) {
        return beacon.answer(client).await;
    }
    // It would come from us, and not from whoever it is.
    if proxy.leads_to_page(redirected.origin) {
        tracing::debug!("closed a connection that was on its way to the page");
        return failure::reset_on_close(&client);
    }
    // Only a socket that is gone already refuses.
    let _ = client.set_nodelay(true);
    let process = proxy.processes.of(&redirected.owner);
    let Ok(address) = client.peer_addr() else { return };
    let accepted = proxy.account.clock.now();
    let visit =
        Visit { proxy, process, client: address, origin: redirected.origin, network: redirected.network, accepted };

    let mut first = BytesMut::new();
    let mut early = None;
    let class = match visit.classify(&mut client, &mut first, &mut early).await {
        Ok(class) => class,
        Err(error) => return visit.unreachable(&client, redirected.origin, &error),
    };
    match class {
        Class::Gone if early.is_none() => visit.knock().await,
        Class::Gone => {}
        Class::Opaque(Opaque::Unsupported) => {
            let name = hello::server_name(&first);
            visit.tunnel(client, name.as_deref(), &first, early, OLD_CLIENT).await;
        }
        Class::Opaque(Opaque::TooLong) => {
            visit.tunnel(client, None, &first, early, "its TLS hello has more than 64 KiB").await;
        }
        Class::Opaque(Opaque::NotTls) => visit.tunnel(client, None, &first, early, "it is not TLS").await,
        Class::Hello(hello) => visit.greeted(client, *hello, &first, early, drain).await,
    }
}

/// Ends a session with a fatal alert. TLS libraries send one only for a reason,
/// so the session is handed a record that nobody can have sealed.
async fn alert(client: &mut TlsStream<TcpStream>) {
    // Long enough to complete whatever record is half there.
    let mut broken = vec![0; 5 + 18 * 1024];
    broken[..5].copy_from_slice(&[0x17, 3, 3, 0, 0x20]);
    let mut broken: &[u8] = &broken;
    let (_, session) = client.get_mut();
    while !broken.is_empty() && session.read_tls(&mut broken).is_ok() && session.process_new_packets().is_ok() {}
    // Past its failure the session sends nothing by itself.
    let mut last = Vec::new();
    while session.wants_write() && session.write_tls(&mut last).is_ok() {}
    let (socket, _) = client.get_mut();
    let _ = socket.write_all(&last).await;
    let _ = socket.shutdown().await;
    // Unread bytes would turn the close into a reset, and that could overtake
    // the alert.
    let mut rest = [0; 4096];
    while matches!(socket.read(&mut rest).await, Ok(1..)) {}
}

/// Ends when the client has closed its side, or lost it.
async fn left(client: &TcpStream) {
    match client.peek(&mut [0; 1]).await {
        Ok(0) | Err(_) => {}
        // It has said more, and waits.
        Ok(_) => std::future::pending().await,
    }
}

/// A connection's visit here: whose it is and where it was going.
struct Visit<'a> {
    proxy: &'a Arc<Proxy>,
    process: Arc<Process>,
    client: SocketAddr,
    origin: SocketAddr,
    network: Network,
    accepted: Moment,
}

impl Visit<'_> {
    /// Reads until it is clear what the client speaks. `Err` where the
    /// upstream had to be connected to tell, and could not be.
    async fn classify(
        &self,
        client: &mut TcpStream,
        first: &mut BytesMut,
        early: &mut Option<TcpStream>,
    ) -> io::Result<Class> {
        loop {
            let read = match early {
                None => tokio::select! {
                    read = client.read_buf(first) => read,
                    () = tokio::time::sleep(SILENCE) => {
                        let to = self.proxy.routes.upstream(None, self.origin);
                        tokio::select! {
                            connected = socket::connect(&self.proxy.gate, self.network, to) => *early = Some(connected?),
                            () = left(client) => return Ok(Class::Gone),
                        }
                        continue;
                    }
                },
                Some(upstream) => tokio::select! {
                    read = client.read_buf(first) => read,
                    // Readable: it speaks, or has closed. Either is a tunnel's
                    // to pass on.
                    _ = upstream.readable() => return Ok(Class::Opaque(Opaque::NotTls)),
                },
            };
            match read {
                Ok(0) if first.is_empty() && early.is_none() => return Ok(Class::Gone),
                Ok(0) => return Ok(Class::Opaque(Opaque::NotTls)),
                Ok(_) => {}
                Err(_) => return Ok(Class::Gone),
            }
            match hello::parse(first) {
                hello::Parsed::NeedMore => {}
                hello::Parsed::Opaque(why) => return Ok(Class::Opaque(why)),
                hello::Parsed::Hello(hello) => return Ok(Class::Hello(hello)),
            }
        }
    }

    /// Goes on after a TLS hello.
    async fn greeted(
        &self,
        client: TcpStream,
        hello: Hello,
        first: &[u8],
        early: Option<TcpStream>,
        drain: watch::Receiver<bool>,
    ) {
        let proxy = self.proxy;
        let sni = hello.client.server_name.clone();
        let name: Arc<str> = sni.as_deref().map_or_else(|| self.origin.ip().to_string().into(), Arc::from);
        if !proxy.routes.intercepts(&name) {
            return self.tunnel(client, sni.as_deref(), first, early, PASSED_BY).await;
        }
        if proxy.learned.leaves_alone(&self.process, &name, self.accepted) {
            return self.tunnel(client, sni.as_deref(), first, early, LEARNED).await;
        }
        if !hello.client.alpn.is_empty() && tls::upstream::spoken(&hello.client.alpn).is_empty() {
            return self.tunnel(client, sni.as_deref(), first, early, "it speaks a protocol other than HTTP").await;
        }
        let authority = proxy.leaves.authority();
        if !sni.as_deref().map_or_else(|| authority.permits_addresses(), |sni| authority.permits(sni)) {
            return self.tunnel(client, sni.as_deref(), first, early, "it is outside the authority's domains").await;
        }

        if let Some(answers) = &proxy.answers {
            // Boxed, so that other connections do not pay for its size.
            return Box::pin(self.answered(answers, client, hello, first, name, drain)).await;
        }
        let place: Place = (Arc::clone(&name), self.origin.port());
        let findings = &proxy.findings;
        let beyond = findings.beyond(&place, Instant::now());
        let has_one = || findings.answer(&self.process, &place, Instant::now()) == Answer::HasOne;
        if let Some(why) = beyond.or_else(|| has_one().then_some(OWN_CERTIFICATE)) {
            return self.tunnel(client, sni.as_deref(), first, early, why).await;
        }

        // The upstream first: what it is, the client is to meet.
        let to = proxy.routes.upstream(sni.as_deref(), self.origin);
        let reached = tokio::select! {
            reached = self.reach(to, early) => reached,
            () = left(&client) => return self.impatient(&name),
        };
        let upstream = match reached {
            Ok(upstream) => upstream,
            Err(error) => {
                if !failure::is_exhaustion(&error) {
                    self.unmade(&name, failure::of_connecting(&error));
                }
                return self.unreachable(&client, to, &error);
            }
        };
        let server_name = match sni.as_deref().map(|sni| ServerName::try_from(sni.to_owned())) {
            Some(Ok(name)) => name,
            Some(Err(_)) => {
                return self.tunnel(client, None, first, Some(upstream), "it asks for a name that is none").await;
            }
            None => ServerName::from(self.origin.ip()),
        };
        let started = Instant::now();
        let (greeted, asked) = tokio::select! {
            greeted = proxy.upstream.greet(upstream, server_name, &hello.client) => greeted,
            () = left(&client) => return self.impatient(&name),
        };
        let (request, taken) = match &asked {
            Asked::Unanswered(request) => (Some(Arc::clone(request)), findings.has_asked(&place, Some(request))),
            Asked::Shown => (None, findings.has_asked(&place, None)),
            // A session that was resumed is not asked again.
            Asked::No => (findings.asks(&place), true),
        };
        let distrusted = greeted.as_ref().is_err_and(tls::is_distrust);
        let answer = || findings.answer(&self.process, &place, Instant::now());
        if request.is_some() && !distrusted && answer() == Answer::Unknown {
            // What it would have shown, only the client knows: it is asked by
            // the upstream itself.
            let told = |shown| findings.answered(&self.process, place.clone(), shown, Instant::now());
            let watched = (!hello.client.resumes).then_some(told);
            return self.pass(client, sni.as_deref(), first, None, OWN_CERTIFICATE, watched).await;
        }
        let greeted = match greeted {
            Ok(mut upstream) if !taken => {
                let patience = (started.elapsed() * 4).clamp(PATIENCE.0, PATIENCE.1);
                let settled = tls::Upstream::settled(&mut upstream, patience).await;
                settled.map(|()| {
                    findings.has_settled(&place);
                    upstream
                })
            }
            greeted => greeted,
        };
        let mut upstream = match greeted {
            Ok(upstream) => upstream,
            Err(error) => {
                let why = match &asked {
                    Asked::No => tls::beyond(&error),
                    Asked::Unanswered(_) => (!distrusted).then_some(OWN_CERTIFICATE),
                    Asked::Shown => None,
                };
                let Some(why) = why else { return self.insecure(client, &name, &error, &asked).await };
                tracing::debug!(%name, %error, why, "the client itself may fare better");
                findings.is_beyond(place, why, Instant::now());
                return self.tunnel(client, sni.as_deref(), first, None, why).await;
            }
        };
        // What it was told in the meantime, on another connection, counts too.
        if proxy.learned.leaves_alone(&self.process, &name, self.accepted) {
            drop(upstream);
            return self.tunnel(client, sni.as_deref(), first, None, LEARNED).await;
        }
        // Once it has refused it may be gone.
        let environment =
            proxy.learned.doubts(&self.process, &name).then(|| process::environment(self.process.key)).flatten();
        let shown = proxy.account.clock.now();
        let (alpn, certificate) = {
            let (_, session) = upstream.get_ref();
            (
                session.alpn_protocol().map(<[u8]>::to_vec),
                session.peer_certificates().and_then(|chain| chain.first()).cloned(),
            )
        };
        let accepted =
            certificate.ok_or_else(|| "the upstream showed no certificate".to_owned()).and_then(|certificate| {
                let leaf =
                    proxy.leaves.for_upstream(sni.as_deref(), &certificate).map_err(|error| error.to_string())?;
                let config = match &request {
                    Some(request) => proxy.servers.asking(&leaf, alpn.as_deref(), request),
                    None => proxy.servers.config(&leaf, alpn.as_deref()),
                };
                let config = config.map_err(|error| error.to_string())?;
                let rest = first.get(hello.length..).unwrap_or_default();
                hello.accept(config, client, rest).map_err(|error| error.to_string())
            });
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.no_certificate(&name, &error),
        };
        let mut client = match accepted.await {
            Ok(client) => client,
            Err(error) => return self.distrusted(&name, &error, shown, environment.as_ref()),
        };
        drop(environment);
        if tls::shows_certificate(client.get_ref().1) {
            findings.answered(&self.process, place, true, Instant::now());
            self.changed_mind(&name);
            failure::reset_on_close(client.get_ref().0);
            failure::reset_on_close(upstream.get_ref().0);
            return;
        }
        let shown = proxy.account.clock.now();
        match self.first_word(&mut client, &mut upstream).await {
            Word::Spoken => {
                proxy.learned.learn(&self.process, &name, Reaction::Trusts, shown);
            }
            Word::Left if proxy.account.clock.now().since(shown) < AT_ONCE => self.left_in_silence(&name, shown),
            Word::Left | Word::Other => {}
        }
        proxy.account.ledger().connection(&self.process, ConnectionKind::Intercepted, proxy.account.clock.now());

        let peer = Peer {
            connection: proxy.account.next_connection(),
            process: Arc::clone(&self.process),
            client: self.client,
            origin: self.origin,
            name,
        };
        let end = if alpn.as_deref() == Some(b"h2") {
            // Boxed, so that HTTP/1 connections do not pay for its size.
            Box::pin(h2::serve(&mut client, &mut upstream, &proxy.account, &peer, drain)).await
        } else {
            h1::serve(&mut client, &mut upstream, &proxy.account, &peer, drain).await
        };
        match end {
            End::Closed => {
                let goodbyes = async { tokio::join!(client.shutdown(), upstream.shutdown()) };
                let _ = tokio::time::timeout(GOODBYE, goodbyes).await;
            }
            End::Cut => {}
            End::Alert => {
                let _ = tokio::time::timeout(GOODBYE, alert(&mut client)).await;
            }
            End::Reset => {
                failure::reset_on_close(client.get_ref().0);
                failure::reset_on_close(upstream.get_ref().0);
            }
        }
    }

    /// Serves a client whose answers come from a recording: nobody is
    /// connected.
    async fn answered(
        &self,
        answers: &Arc<Answers>,
        client: TcpStream,
        hello: Hello,
        first: &[u8],
        name: Arc<str>,
        drain: watch::Receiver<bool>,
    ) {
        let proxy = self.proxy;
        let sni = hello.client.server_name.clone();
        let alpn = answers.protocol(&name, &hello.client.alpn);
        let real = self.connector(hello.client.clone());
        let shown = proxy.account.clock.now();
        let accepted = proxy.leaves.without_upstream(sni.as_deref(), self.origin.ip()).and_then(|leaf| {
            let rest = first.get(hello.length..).unwrap_or_default();
            proxy.servers.config(&leaf, alpn).map(|config| (config, rest))
        });
        let accepted = accepted.map_err(|error| error.to_string());
        let accepted =
            accepted.and_then(|(config, rest)| hello.accept(config, client, rest).map_err(|error| error.to_string()));
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return self.no_certificate(&name, &error),
        };
        let mut client = match accepted.await {
            Ok(client) => client,
            Err(error) => return self.distrusted(&name, &error, shown, None),
        };
        let account = &proxy.account;
        account.ledger().connection(&self.process, ConnectionKind::Intercepted, account.clock.now());
        let peer = Peer {
            connection: account.next_connection(),
            process: Arc::clone(&self.process),
            client: self.client,
            origin: self.origin,
            name: Arc::clone(&name),
        };
        let two = alpn == Some(b"h2");
        let (mut upstream, server) = answers.upstream(name, two, real);
        let served = async {
            if two {
                Box::pin(h2::serve(&mut client, &mut upstream, account, &peer, drain)).await
            } else {
                h1::serve(&mut client, &mut upstream, account, &peer, drain).await
            }
        };
        let end = {
            let mut served = std::pin::pin!(served);
            // What the server has left is still to be passed.
            tokio::select! {
                end = &mut served => end,
                () = server => served.await,
            }
        };
        match end {
            End::Closed => drop(tokio::time::timeout(GOODBYE, client.shutdown()).await),
            End::Cut => {}
            End::Alert => drop(tokio::time::timeout(GOODBYE, alert(&mut client)).await),
            End::Reset => failure::reset_on_close(client.get_ref().0),
        }
    }

    /// What makes connections to the upstream as the client would.
    fn connector(&self, client: tls::ClientHello) -> Connector {
        let (proxy, network, origin) = (Arc::clone(self.proxy), self.network, self.origin);
        Box::new(move || {
            let (proxy, client) = (Arc::clone(&proxy), client.clone());
            Box::pin(async move {
                let sni = client.server_name.as_deref();
                let to = proxy.routes.upstream(sni, origin);
                let stream = socket::connect(&proxy.gate, network, to).await?;
                let name = match sni {
                    Some(sni) => ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?,
                    None => ServerName::from(origin.ip()),
                };
                proxy.upstream.greet(stream, name, &client).await.0
            })
        })
    }

    /// A client that has come and gone without a word: its upstream sees that
    /// as well. Where there is no upstream, there is nobody left to be told.
    async fn knock(&self) {
        let to = self.proxy.routes.upstream(None, self.origin);
        let _ = tokio::time::timeout(GOODBYE, socket::connect(&self.proxy.gate, self.network, to)).await;
    }

    /// Passes the connection on untouched.
    async fn tunnel(
        &self,
        client: TcpStream,
        name: Option<&str>,
        first: &[u8],
        early: Option<TcpStream>,
        why: &'static str,
    ) {
        self.pass(client, name, first, early, why, None::<fn(bool)>).await;
    }

    /// The same; `told` hears whether the client shows a certificate.
    async fn pass(
        &self,
        mut client: TcpStream,
        name: Option<&str>,
        first: &[u8],
        early: Option<TcpStream>,
        why: &'static str,
        told: Option<impl Fn(bool) + Unpin>,
    ) {
        let to = self.proxy.routes.upstream(name, self.origin);
        let mut upstream = match self.reach(to, early).await {
            Ok(upstream) => upstream,
            Err(error) => return self.unreachable(&client, to, &error),
        };
        let account = &self.proxy.account;
        let name = name.map_or_else(|| self.origin.to_string(), str::to_owned);
        let began = account.clock.now();
        account.ledger().tunnel(&self.process, &name, why, began);
        tracing::debug!(pid = self.process.key.pid, name, origin = %self.origin, why, "tunnelled");
        let count = Tunnelled { visit: self, name: &name, why, began, count: tunnel::Count::default() };
        let end = match told {
            Some(told) => {
                let mut watched = tunnel::Watched { client: &mut client, witness: Witness::default(), told };
                tunnel::run(&mut watched, &mut upstream, first, &count.count).await
            }
            None => tunnel::run(&mut client, &mut upstream, first, &count.count).await,
        };
        if end == End::Reset {
            failure::reset_on_close(&client);
            failure::reset_on_close(&upstream);
        }
    }

    /// The upstream's connection: the one made while classifying, where it
    /// leads to the right place.
    async fn reach(&self, to: SocketAddr, early: Option<TcpStream>) -> io::Result<TcpStream> {
        match early {
            Some(early) if early.peer_addr().is_ok_and(|there| there == to) => Ok(early),
            _ => socket::connect(&self.proxy.gate, self.network, to).await,
        }
    }

    /// Waits for the client's first word after its handshake, or for whatever
    /// ends that wait; nothing is consumed.
    async fn first_word(&self, client: &mut TlsStream<TcpStream>, upstream: &mut UpstreamStream<TcpStream>) -> Word {
        // The upstream may speak first where HTTP/2 is spoken, and that says
        // nothing of the client.
        let waits = upstream.get_ref().1.alpn_protocol() != Some(b"h2");
        tokio::select! {
            biased;
            word = client.fill_buf() => match word {
                Ok(word) if !word.is_empty() => Word::Spoken,
                Ok(_) | Err(_) => Word::Left,
            },
            word = upstream.fill_buf() => match word {
                Ok(word) if !word.is_empty() && !waits => match client.fill_buf().await {
                    Ok(word) if !word.is_empty() => Word::Spoken,
                    Ok(_) | Err(_) => Word::Left,
                },
                Ok(_) | Err(_) => Word::Other,
            },
        }
    }

    /// The client left while its upstream kept us waiting.
    fn impatient(&self, name: &str) {
        self.unmade(name, Failure::Cancelled);
        self.refused(Problem {
            kind: "the client left before the upstream had answered",
            name: name.to_owned(),
            hint: format!("{name} did not complete its TLS handshake in the time that the client grants."),
            differs: None,
        });
    }

    /// The client's attempt ends before its request.
    fn unmade(&self, name: &str, failure: Failure) {
        let account = &self.proxy.account;
        let peer = Peer {
            connection: account.next_connection(),
            process: Arc::clone(&self.process),
            client: self.client,
            origin: self.origin,
            name: name.into(),
        };
        exchange::unmade(account, &peer, self.accepted, failure);
    }

    /// There is no upstream: neither is there for the client.
    fn unreachable(&self, client: &TcpStream, to: SocketAddr, error: &io::Error) {
        let name = to.to_string();
        let (kind, hint, differs) = if failure::is_exhaustion(error) {
            self.proxy.capacity.exhausted();
            (
                "retryscope ran out of resources",
                format!(
                    "No connection to {name} could be made: {error}. Raise retryscope's limit of open files (`ulimit -n`)."
                ),
                "the client's connection was reset for want of retryscope's own resources",
            )
        } else {
            (
                "the upstream could not be reached",
                format!("connecting to {name} failed: {error}"),
                "the client's connect() succeeded and its connection was then reset, where directly connect() itself \
                 would have failed",
            )
        };
        self.refused(Problem { kind, name, hint, differs: Some(differs) });
        failure::reset_on_close(client);
    }

    /// The upstream failed its handshake: the client gets the alert that it
    /// would have raised or received itself, or the failure below TLS.
    async fn insecure(&self, mut client: TcpStream, name: &str, error: &io::Error, asked: &Asked) {
        self.unmade(name, if tls::mirror_alert(error).is_some() { Failure::Tls } else { failure::of(error) });
        self.refused(Problem {
            kind: "the upstream failed its TLS handshake",
            name: name.to_owned(),
            hint: tls::explain(error, name, asked),
            differs: tls::is_raised_here(error).then_some(
                "the client received a TLS alert, where directly it would have judged the upstream's handshake itself",
            ),
        });
        match tls::mirror_alert(error) {
            Some(alert) => {
                // Whoever is gone already needs no alert.
                let _ = client.write_all(&tls::alert_record(alert)).await;
                let _ = client.shutdown().await;
                // Unread bytes would turn the close into a reset, and that
                // could overtake the alert.
                let mut rest = [0; 512];
                let drained = async { while matches!(client.read(&mut rest).await, Ok(1..)) {} };
                let _ = tokio::time::timeout(GOODBYE, drained).await;
            }
            None if failure::of(error) == Failure::Closed => {}
            None => failure::reset_on_close(&client),
        }
    }

    fn no_certificate(&self, name: &str, error: &str) {
        self.refused(Problem {
            kind: "no certificate could be made",
            name: name.to_owned(),
            hint: format!("no certificate could be made for {name}: {error}"),
            differs: Some("the client was cut off in its handshake"),
        });
    }

    /// The client refused our side of its handshake.
    fn distrusted(
        &self,
        name: &Arc<str>,
        error: &io::Error,
        shown: Moment,
        environment: Option<&process::Environment>,
    ) {
        let facts = self.process.facts();
        let program = process::bare(facts.exe.as_deref().unwrap_or(&facts.comm));
        let remedy = tls::remedy(program, name, |variable| {
            let value = environment?.get(OsStr::new(variable));
            Some(value.map(|value| value.to_string_lossy().into_owned()))
        });
        let now = self.proxy.account.clock.now();
        let reason = tls::refused_by_client(error);
        let reaction = match reason {
            Some(_) => Some(Reaction::Refuses),
            None if tls::is_broken_off(error) && now.since(shown) < AT_ONCE => Some(Reaction::BrokeOff),
            None => None,
        };
        let learned = reaction.is_some_and(|reaction| self.proxy.learned.learn(&self.process, name, reaction, now));
        let hint = match (reason, reaction) {
            (Some(reason), _) => format!("{reason}; {remedy}{}", self.consequence(learned)),
            (None, Some(_)) => format!(
                "it broke off the handshake ({error}), and may not trust the certificate; {remedy}{}",
                self.consequence(learned)
            ),
            (None, None) => format!("the handshake failed ({error}); `--passthrough {name}` leaves the host alone"),
        };
        self.refused(Problem {
            kind: REFUSED_BY_CLIENT,
            name: name.to_string(),
            hint,
            differs: Some("the client failed its handshake, which it would not have done directly"),
        });
    }

    /// The client completed its handshake and left at once, as one does that
    /// compares the certificate with one it knows.
    fn left_in_silence(&self, name: &Arc<str>, shown: Moment) {
        if !self.proxy.learned.doubts(&self.process, name) {
            return;
        }
        let learned = self.proxy.learned.learn(&self.process, name, Reaction::Refuses, shown);
        let hint = format!(
            "it left right after the handshake without a request, as a client does that pins its server's certificate \
             or key: nothing outside of it can change that; `--passthrough {name}` leaves the host alone from the \
             start{}",
            self.consequence(learned)
        );
        self.problem(Problem {
            kind: REFUSED_BY_CLIENT,
            name: name.to_string(),
            hint,
            differs: Some("the client left right after its handshake, which it might not have done directly"),
        });
    }

    /// The client showed a certificate of its own, where the program was seen
    /// to have none.
    fn changed_mind(&self, name: &str) {
        self.refused(Problem {
            kind: CHANGED_MIND,
            name: name.to_owned(),
            hint: "it had shown none before, and its own cannot be passed on. From its next connection on it is left alone, unread; `--client-cert PEM` shows a certificate in its place".to_owned(),
            differs: Some("the client's connection was reset, since it showed a certificate that cannot be passed on"),
        });
    }

    fn consequence(&self, learned: bool) -> &'static str {
        if learned {
            ". From its next connection on it is left alone, unread"
        } else if self.proxy.learned.is_strict() {
            ". With --strict it fails each time"
        } else {
            ""
        }
    }

    fn refused(&self, problem: Problem) {
        let account = &self.proxy.account;
        account.ledger().connection(&self.process, ConnectionKind::Refused, account.clock.now());
        self.problem(problem);
    }

    /// Tells of a connection that is counted elsewhere.
    fn problem(&self, problem: Problem) {
        tracing::debug!(pid = self.process.key.pid, kind = problem.kind, hint = problem.hint, "problem");
        let account = &self.proxy.account;
        account.ledger().problem(&self.process, problem, account.clock.now());
    }
}

/// What a client did after its handshake.
enum Word {
    Spoken,
    /// It ended its side, or lost it, without a word.
    Left,
    /// The upstream spoke or ended first.
    Other,
}

/// A tunnel under way: what passed is told when it ends, however it ends.
struct Tunnelled<'a> {
    visit: &'a Visit<'a>,
    name: &'a str,
    why: &'static str,
    began: Moment,
    count: tunnel::Count,
}

impl Drop for Tunnelled<'_> {
    fn drop(&mut self) {
        let account = &self.visit.proxy.account;
        let passed = Passed {
            sent: self.count.sent.load(Ordering::Relaxed),
            received: self.count.received.load(Ordering::Relaxed),
            open: account.clock.now().since(self.began),
        };
        account.ledger().passed(&self.visit.process, self.name, self.why, passed);
    }
}
