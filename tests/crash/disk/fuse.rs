//! The kernel's side of the disk: the FUSE protocol, as far as a database and its log use it.
//!
//! Requests come one by one from `/dev/fuse` and are answered by one thread. Nothing is cached by the kernel: no names, no
//! attributes, no pages. So every write arrives here when it is made, and a sync is a request of its own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::{Change, Content, Tree, errno, file, folder};

const MAX_WRITE: u32 = 128 << 10;
/// The version of the protocol that is spoken here.
const MINOR: u32 = 31;
const FLAG_BIG_WRITES: u32 = 1 << 5;
const FLAG_MAX_PAGES: u32 = 1 << 22;
const OPEN_DIRECT: u32 = 1;
const SIZE_IS_SET: u32 = 1 << 3;
const REQUEST_HEAD: usize = 40;
const ENOSYS: i32 = 38;

const IS_FOLDER: u32 = 0o040_000;
const IS_FILE: u32 = 0o100_000;

/// Mounts `tree` and answers for it until it is unmounted.
pub(super) fn mount(at: &Path, tree: Arc<Mutex<Tree>>) -> Result<(), String> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| format!("/dev/fuse: {e}"))?;
    let inherited = device.try_clone().map_err(|e| e.to_string())?;
    // The mount command finds the device as its standard input; no system call needs to be made from here.
    let done = Command::new("mount")
        .args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "tollgate-crash"])
        .arg(at)
        .stdin(Stdio::from(inherited))
        .output()
        .map_err(|e| format!("mount: {e}"))?;
    if !done.status.success() {
        return Err(format!("mount: {}", String::from_utf8_lossy(&done.stderr).trim()));
    }
    std::thread::spawn(move || answer_forever(device, &tree));
    Ok(())
}

fn answer_forever(mut device: File, tree: &Mutex<Tree>) {
    let mut buffer = vec![0; MAX_WRITE as usize + (64 << 10)];
    loop {
        let len = match device.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            // A request that its maker gave up, or a signal: the next one.
            Err(error) if matches!(error.raw_os_error(), Some(errno::ENOENT | 4)) => continue,
            Err(_) => return,
        };
        let Some(request) = Request::read(&buffer[..len]) else { return };
        let reply = match answer(&request, &mut tree.lock().unwrap()) {
            Ok(None) => continue,
            Ok(Some(body)) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut out = Vec::with_capacity(16 + reply.1.len());
        out.extend_from_slice(&(16 + reply.1.len() as u32).to_le_bytes());
        out.extend_from_slice(&reply.0.to_le_bytes());
        out.extend_from_slice(&request.unique.to_le_bytes());
        out.extend_from_slice(&reply.1);
        // Whoever asked may have been killed meanwhile.
        let _ = device.write_all(&out);
    }
}

struct Request<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..REQUEST_HEAD)?;
        Some(Self {
            opcode: u32_at(head, 4),
            unique: u64_at(head, 8),
            node: u64_at(head, 16),
            body: &bytes[REQUEST_HEAD..],
        })
    }

    /// The text from `at` to the next zero byte, and where it ends.
    fn name(&self, at: usize) -> Result<(&'a str, usize), i32> {
        let rest = self.body.get(at..).ok_or(errno::EINVAL)?;
        let len = rest.iter().position(|byte| *byte == 0).ok_or(errno::EINVAL)?;
        Ok((std::str::from_utf8(&rest[..len]).map_err(|_| errno::EINVAL)?, at + len + 1))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
}

fn words(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn halves(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// `None`: this request has no answer.
fn answer(request: &Request<'_>, tree: &mut Tree) -> Result<Option<Vec<u8>>, i32> {
    let (node, body) = (request.node, request.body);
    let mut out = Vec::new();
    match request.opcode {
        // LOOKUP
        1 => entry(tree, tree.look_up(node, request.name(0)?.0)?, &mut out)?,
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return Ok(None),
        // GETATTR
        3 => attributes(tree, node, &mut out)?,
        // SETATTR: times, owners and modes are of no interest here.
        4 => {
            if u32_at(body, 0) & SIZE_IS_SET != 0 {
                tree.change(node, Change::Cut { len: u64_at(body, 16) as usize })?;
            }
            attributes(tree, node, &mut out)?;
        }
        // MKDIR
        9 => {
            let id = tree.create(node, request.name(8)?.0, u32_at(body, 0), folder())?;
            entry(tree, id, &mut out)?;
        }
        // UNLINK, RMDIR
        10 => tree.remove(node, request.name(0)?.0, false)?,
        11 => tree.remove(node, request.name(0)?.0, true)?,
        // RENAME, RENAME2
        12 | 45 => {
            let (from, next) = request.name(if request.opcode == 12 { 8 } else { 16 })?;
            tree.rename((node, from), (u64_at(body, 0), request.name(next)?.0))?;
        }
        // OPEN, OPENDIR
        14 | 27 => opened(&mut out),
        // READ
        15 => out.extend_from_slice(tree.read(node, u64_at(body, 8) as usize, u32_at(body, 16) as usize)?),
        // WRITE
        16 => {
            let bytes = body.get(40..).ok_or(errno::EINVAL)?.to_vec();
            let len = bytes.len() as u32;
            tree.change(node, Change::Write { offset: u64_at(body, 8) as usize, bytes })?;
            halves(&mut out, &[len, 0]);
        }
        // STATFS: large and empty.
        17 => {
            words(&mut out, &[1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20]);
            halves(&mut out, &[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0]);
        }
        // RELEASE, FLUSH, RELEASEDIR, DESTROY
        18 | 25 | 29 | 38 => {}
        // FSYNC, FSYNCDIR
        20 | 30 => tree.sync(node)?,
        // INIT
        26 => {
            halves(&mut out, &[7, MINOR, u32_at(body, 8), u32_at(body, 12) & (FLAG_BIG_WRITES | FLAG_MAX_PAGES)]);
            out.extend_from_slice(&[16, 0, 12, 0]);
            halves(&mut out, &[MAX_WRITE, 1]);
            out.extend_from_slice(&((MAX_WRITE / 4096) as u16).to_le_bytes());
            out.resize(64, 0);
        }
        // READDIR
        28 => entries(tree, node, u64_at(body, 8) as usize, u32_at(body, 16) as usize, &mut out)?,
        // CREATE
        35 => {
            let id = tree.create(node, request.name(16)?.0, u32_at(body, 4), file())?;
            entry(tree, id, &mut out)?;
            opened(&mut out);
        }
        // Everything else is nothing a database needs.
        _ => return Err(ENOSYS),
    }
    Ok(Some(out))
}

/// No handles of our own, and no pages in the kernel.
fn opened(out: &mut Vec<u8>) {
    words(out, &[0]);
    halves(out, &[OPEN_DIRECT, 0]);
}

fn push_attributes(tree: &Tree, id: u64, out: &mut Vec<u8>) -> Result<(), i32> {
    let node = tree.nodes.get(&id).ok_or(errno::ENOENT)?;
    let (size, kind, links) = match &node.content {
        Content::File { data, .. } => (data.len() as u64, IS_FILE, tree.links(id)),
        Content::Folder { .. } => (0, IS_FOLDER, 2),
    };
    words(out, &[id, size, size.div_ceil(512), 0, 0, 0]);
    halves(out, &[0, 0, 0, kind | node.mode, links, 0, 0, 0, 4096, 0]);
    Ok(())
}

fn attributes(tree: &Tree, id: u64, out: &mut Vec<u8>) -> Result<(), i32> {
    words(out, &[0, 0]);
    push_attributes(tree, id, out)
}

fn entry(tree: &Tree, id: u64, out: &mut Vec<u8>) -> Result<(), i32> {
    words(out, &[id, 0, 0, 0, 0]);
    push_attributes(tree, id, out)
}

fn entries(tree: &Tree, id: u64, skip: usize, room: usize, out: &mut Vec<u8>) -> Result<(), i32> {
    for (nth, (name, node)) in tree.names(id)?.iter().enumerate().skip(skip) {
        let is_folder = matches!(tree.nodes.get(node).map(|node| &node.content), Some(Content::Folder { .. }));
        let kind = if is_folder { IS_FOLDER } else { IS_FILE };
        let padded = (24 + name.len()).next_multiple_of(8);
        if out.len() + padded > room {
            break;
        }
        let end = out.len() + padded;
        words(out, &[*node, nth as u64 + 1]);
        halves(out, &[name.len() as u32, kind >> 12]);
        out.extend_from_slice(name.as_bytes());
        out.resize(end, 0);
    }
    Ok(())
}
