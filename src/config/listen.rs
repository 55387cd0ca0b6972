//! Where the gateway listens: what `[listen]` must fulfil.

use super::Listen;

/// # Errors
/// The key, what is wrong with it, and how to mend it.
pub(super) fn check(listen: &Listen) -> Result<(), String> {
    if !listen.admin.ip().is_loopback() && !listen.admin_insecure {
        return Err(format!(
            "listen.admin: {} is not on loopback and the side port has no TLS; use 127.0.0.1, or set \
             listen.admin_insecure = true if the network is trusted",
            listen.admin
        ));
    }
    if let Some(host) = listen.admin_hosts.iter().find(|host| !is_host_name(host)) {
        return Err(format!(
            "listen.admin_hosts: \"{host}\" is not a bare host name; write admin.example.com, without a port"
        ));
    }
    if listen.workers > 1024 {
        return Err(format!("listen.workers: {} is more than 1024; 0 means one per core", listen.workers));
    }
    Ok(())
}

/// Letters, digits, `-`, `_` and dots, as a `Host` field has a name.
fn is_host_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(fits)
}
