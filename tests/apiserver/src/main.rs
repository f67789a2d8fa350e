//! The stand-in for the Kubernetes API server as a program. Faults are ordered by `POST /_faults`.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use clap::Parser;
use tapir_apiserver::{ApiServer, Options};

/// A stand-in for the Kubernetes API server, for tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen; port 0 lets the kernel choose. The first line of output is the address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Bearer token that every request must bring.
    #[arg(long)]
    token: Option<String>,
    /// Milliseconds between the bookmarks of a watch.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    bookmarks: u64,
    /// How many changes are kept for watches.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    history: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let Arguments { listen, token, bookmarks, history } = Arguments::parse();
    let listener =
        TcpListener::bind(listen).map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {listen}: {e}")))?;
    let options = Options { token, bookmarks: Duration::from_millis(bookmarks), history };
    let server = ApiServer::serve(listener, options)?;
    writeln!(io::stdout(), "{}", server.handle().address())?;
    std::future::pending().await
}
