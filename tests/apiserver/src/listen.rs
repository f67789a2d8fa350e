//! Connections: taken, served, refused.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::{Shutdown, bind, listen, shutdown};
use tokio::net::TcpStream;

use crate::{Shared, request};

const BACKLOG: i32 = 1024;

/// Takes connections for as long as the server lives; while it is gone it waits.
pub(crate) async fn accept(shared: Arc<Shared>) {
    let mut faults = shared.faults.subscribe();
    loop {
        match faults.wait_for(|faults| !faults.gone || faults.over).await {
            Ok(faults) if !faults.over => {}
            _ => return,
        }
        // A socket that was shut down stays so for who polled it: hence anew.
        let listener = shared.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        let Ok(listener) = listener else {
            tokio::task::yield_now().await;
            continue;
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = faults.wait_for(|faults| faults.gone) => break,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(shared.clone(), stream))),
                Err(_) => break,
            }
        }
    }
}

/// Serves a connection until either side ends it.
async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let mut faults = shared.faults.subscribe();
    let cut = faults.borrow().connections_cut;
    stream.set_nodelay(true).ok();
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        request::answer(shared.clone(), request.map(Body::new))
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How a connection ends is the client's to say.
        _ = connection => {}
        _ = faults.wait_for(|faults| faults.connections_cut != cut) => {}
    }
}

/// Lets the kernel refuse connections, and keeps the port.
pub(crate) fn refuse(listener: &TcpListener, address: SocketAddr) -> io::Result<()> {
    shutdown(listener, Shutdown::Both).or_else(|error| match error {
        rustix::io::Errno::NOTCONN => Ok(()),
        error => Err(error),
    })?;
    // Linux gives a port back that it had chosen itself, and refuses to bind where it did not.
    match bind(listener, &address) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn accept_again(listener: &TcpListener) -> io::Result<()> {
    Ok(listen(listener, BACKLOG)?)
}
