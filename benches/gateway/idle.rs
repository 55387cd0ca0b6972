//! Memory: a fresh server, and the same one with many idle keep-alive connections that each did one call.

use crate::figures::mebibytes;
use crate::lab::{Lab, Server};
use crate::load::{self, Connection};
use crate::process::open_files_limit;
use crate::{Choice, Fallible};

const CONNECTIONS: usize = 10_000;
/// Descriptors this process, and the server, need for other things: upstream connections, files, the event loop.
const SPARE_FILES: usize = 512;

pub async fn run(lab: &Lab, choice: &Choice) -> Fallible<()> {
    let limit = open_files_limit();
    let wanted = CONNECTIONS.min(limit.saturating_sub(SPARE_FILES));
    println!("idle: resident memory; open files allowed: {limit}, connections tried: {wanted}");
    for server in lab.proxies(choice).await? {
        hold(&server, wanted).await?;
    }
    Ok(())
}

async fn hold(server: &Server, wanted: usize) -> Fallible<()> {
    let fresh = server.process.resident()?;
    println!("{:<9} fresh: {:.1} MiB", server.name, mebibytes(fresh));
    let (connections, failure) = open(server, wanted).await;
    let held = server.process.resident()?;
    println!("{:<9} with {} idle connections: {:.1} MiB", server.name, connections.len(), mebibytes(held));
    if let Some(failure) = failure {
        println!("          stopped opening: {failure}");
    }
    let each = held.saturating_sub(fresh) / connections.len().max(1) as u64;
    println!("{:<9} {each} bytes per idle connection", server.name);
    Ok(())
}

/// Opens connections one by one, with one call on each; stops at the first that does not work.
async fn open(server: &Server, wanted: usize) -> (Vec<Connection>, Option<String>) {
    let request = load::chat_request(server, false, &[]);
    let mut connections = Vec::with_capacity(wanted);
    while connections.len() < wanted {
        match open_one(server, &request).await {
            Ok(connection) => connections.push(connection),
            Err(error) => return (connections, Some(error.to_string())),
        }
    }
    (connections, None)
}

async fn open_one(server: &Server, request: &[u8]) -> Fallible<Connection> {
    let mut connection = Connection::open(server.addr).await?;
    let reply = connection.exchange(request).await?;
    if reply.status != 200 {
        let body = String::from_utf8_lossy(connection.body(&reply));
        return Err(format!("status {}: {body}", reply.status).into());
    }
    connection.shrink();
    Ok(connection)
}
