//! A disk whose power can be cut: what was not synced is then lost, in whole or in part.
//!
//! A file system in a process's memory, mounted through `/dev/fuse` (which takes root). Each file keeps what is durable
//! apart from the writes that came since its last sync, and each directory what is durable apart from the names that came
//! and went since it was synced itself. A power cut keeps the durable part and, by chance, nothing, a beginning, or any
//! selection of the rest, down to single sectors of a write. Names are kept or lost in the order in which they changed, as
//! file systems with a journal do; that a new file is synced says nothing about its name.

mod fuse;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

/// What a disk writes at once.
const SECTOR: usize = 512;
const ROOT: u64 = 1;

/// What makes this program the server of a disk; the place to mount it at follows.
pub const SERVER: &str = "--serve-disk";

/// The mounted file system. Unmounted when dropped.
///
/// A process of its own serves it: one that waits for its own disk could not even be killed.
pub struct Disk {
    server: Child,
    /// Taken when dropped: the server ends with it.
    orders: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Disk {
    /// Mounts an empty one.
    ///
    /// # Errors
    /// Why it cannot be mounted here.
    pub fn mount(at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        // In a group of its own: Ctrl-C ends the tests, and their end the server, in good order.
        let mut server = Command::new(program)
            .arg(SERVER)
            .arg(at)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let orders = server.stdin.take();
        let replies = BufReader::new(server.stdout.take().ok_or("the server has no output")?);
        let mut disk = Self { server, orders, replies };
        match disk.reply().as_str() {
            DONE => Ok(disk),
            why => Err(why.to_owned()),
        }
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        assert_eq!(self.reply(), DONE, "{order}");
    }

    /// Loses what was not synced. Nobody may have a file open.
    pub fn cut_power(&mut self, random: &mut fastrand::Rng) {
        self.order(&format!("cut {}", random.u64(..)));
    }

    /// Loses everything: a new disk.
    pub fn wipe(&mut self) {
        self.order("wipe");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.server.wait();
    }
}

const DONE: &str = "done";

/// The server's whole life: mounts a disk, and obeys until nobody gives orders any more.
pub fn serve(at: &Path) -> ExitCode {
    let tree = Arc::new(Mutex::new(Tree::new()));
    if let Err(why) = fuse::mount(at, tree.clone()) {
        println!("{why}");
        return ExitCode::FAILURE;
    }
    println!("{DONE}");
    for order in std::io::stdin().lines().map_while(Result::ok) {
        match order.strip_prefix("cut ").and_then(|seed| seed.parse().ok()) {
            Some(seed) => tree.lock().unwrap().cut_power(&mut fastrand::Rng::with_seed(seed)),
            None => tree.lock().unwrap().wipe(),
        }
        println!("{DONE}");
    }
    let _ = Command::new("umount").arg("-l").arg(at).status();
    ExitCode::SUCCESS
}

/// A change to a file since its last sync.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Cut { len: usize },
}

impl Change {
    fn apply(&self, data: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if data.len() < end {
                    data.resize(end, 0);
                }
                data[*offset..end].copy_from_slice(bytes);
            }
            Self::Cut { len } => data.resize(*len, 0),
        }
    }
}

/// A change to a directory since its last sync.
#[derive(Clone, Debug)]
struct Naming {
    name: String,
    /// `None`: the name went.
    node: Option<u64>,
}

type Names = BTreeMap<String, u64>;

#[derive(Debug)]
enum Content {
    File { data: Vec<u8>, durable: Vec<u8>, pending: Vec<Change> },
    Folder { names: Names, durable: Names, pending: Vec<Vec<Naming>> },
}

#[derive(Debug)]
struct Node {
    mode: u32,
    content: Content,
}

/// How much of what was pending a power cut keeps.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Nothing,
    Beginning,
    Anything,
}

/// All files and folders, by their numbers; a number is never used twice.
struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

/// The errors a file system answers with, as Linux numbers them.
mod errno {
    pub const ENOENT: i32 = 2;
    pub const EEXIST: i32 = 17;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const ENOTEMPTY: i32 = 39;
}

impl Tree {
    fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), next: ROOT + 1 };
        tree.nodes.insert(ROOT, Node { mode: 0o755, content: folder() });
        tree
    }

    fn wipe(&mut self) {
        self.nodes.clear();
        self.nodes.insert(ROOT, Node { mode: 0o755, content: folder() });
    }

    fn names(&self, folder: u64) -> Result<&Names, i32> {
        match self.nodes.get(&folder).map(|node| &node.content) {
            Some(Content::Folder { names, .. }) => Ok(names),
            Some(Content::File { .. }) => Err(errno::ENOTDIR),
            None => Err(errno::ENOENT),
        }
    }

    fn look_up(&self, folder: u64, name: &str) -> Result<u64, i32> {
        self.names(folder)?.get(name).copied().ok_or(errno::ENOENT)
    }

    /// Changes names in one folder, all at once.
    fn rename_in(&mut self, folder: u64, changes: Vec<Naming>) -> Result<(), i32> {
        let Some(Node { content: Content::Folder { names, pending, .. }, .. }) = self.nodes.get_mut(&folder) else {
            return Err(errno::ENOTDIR);
        };
        for change in &changes {
            apply(change, names);
        }
        pending.push(changes);
        Ok(())
    }

    fn create(&mut self, folder: u64, name: &str, mode: u32, content: Content) -> Result<u64, i32> {
        if self.names(folder)?.contains_key(name) {
            return Err(errno::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node { mode: mode & 0o7777, content });
        self.rename_in(folder, vec![Naming { name: name.to_owned(), node: Some(id) }])?;
        Ok(id)
    }

    fn remove(&mut self, folder: u64, name: &str, wants_folder: bool) -> Result<(), i32> {
        let id = self.look_up(folder, name)?;
        match (self.nodes.get(&id).map(|node| &node.content), wants_folder) {
            (Some(Content::Folder { names, .. }), true) if !names.is_empty() => return Err(errno::ENOTEMPTY),
            (Some(Content::Folder { .. }), false) => return Err(errno::EISDIR),
            (Some(Content::File { .. }), true) => return Err(errno::ENOTDIR),
            _ => {}
        }
        self.rename_in(folder, vec![Naming { name: name.to_owned(), node: None }])
    }

    /// Within one folder only: nothing here moves a file to another one.
    fn rename(&mut self, folder: u64, from: &str, to: &str) -> Result<(), i32> {
        let id = self.look_up(folder, from)?;
        let gone = Naming { name: from.to_owned(), node: None };
        self.rename_in(folder, vec![gone, Naming { name: to.to_owned(), node: Some(id) }])
    }

    fn read(&self, file: u64, offset: usize, len: usize) -> Result<&[u8], i32> {
        match self.nodes.get(&file).map(|node| &node.content) {
            Some(Content::File { data, .. }) => {
                let from = offset.min(data.len());
                Ok(&data[from..(from + len).min(data.len())])
            }
            Some(Content::Folder { .. }) => Err(errno::EISDIR),
            None => Err(errno::ENOENT),
        }
    }

    fn change(&mut self, file: u64, change: Change) -> Result<(), i32> {
        let Some(Node { content: Content::File { data, pending, .. }, .. }) = self.nodes.get_mut(&file) else {
            return Err(errno::EINVAL);
        };
        change.apply(data);
        pending.push(change);
        Ok(())
    }

    /// Makes what a file holds, or a folder names, durable.
    fn sync(&mut self, id: u64) -> Result<(), i32> {
        match self.nodes.get_mut(&id).map(|node| &mut node.content) {
            Some(Content::File { durable, pending, .. }) => {
                for change in pending.drain(..) {
                    change.apply(durable);
                }
            }
            Some(Content::Folder { durable, pending, .. }) => {
                for change in pending.drain(..).flatten() {
                    apply(&change, durable);
                }
            }
            None => return Err(errno::ENOENT),
        }
        Ok(())
    }

    fn cut_power(&mut self, random: &mut fastrand::Rng) {
        let kept = [Kept::Nothing, Kept::Beginning, Kept::Anything][random.usize(0..3)];
        for node in self.nodes.values_mut() {
            match &mut node.content {
                Content::File { data, durable, pending } => {
                    keep(kept, std::mem::take(pending), durable, random);
                    data.clone_from(durable);
                }
                Content::Folder { names, durable, pending } => {
                    let so_many = match kept {
                        Kept::Nothing => 0,
                        Kept::Beginning | Kept::Anything => random.usize(0..=pending.len()),
                    };
                    for change in std::mem::take(pending).into_iter().take(so_many).flatten() {
                        apply(&change, durable);
                    }
                    names.clone_from(durable);
                }
            }
        }
        self.forget_nameless();
    }

    fn forget_nameless(&mut self) {
        let (mut reached, mut next) = (vec![ROOT], 0);
        while let Some(id) = reached.get(next).copied() {
            next += 1;
            if let Ok(names) = self.names(id) {
                reached.extend(names.values());
            }
        }
        self.nodes.retain(|id, _| reached.contains(id));
    }
}

fn folder() -> Content {
    Content::Folder { names: Names::new(), durable: Names::new(), pending: Vec::new() }
}

fn file() -> Content {
    Content::File { data: Vec::new(), durable: Vec::new(), pending: Vec::new() }
}

fn apply(change: &Naming, names: &mut Names) {
    match change.node {
        Some(id) => names.insert(change.name.clone(), id),
        None => names.remove(&change.name),
    };
}

/// What of a file's pending changes reaches the disk although nobody waited for it.
fn keep(kept: Kept, pending: Vec<Change>, durable: &mut Vec<u8>, random: &mut fastrand::Rng) {
    match kept {
        Kept::Nothing => {}
        Kept::Beginning => {
            let so_many = random.usize(0..=pending.len());
            for (nth, change) in pending.into_iter().enumerate() {
                if nth < so_many {
                    change.apply(durable);
                } else if nth == so_many {
                    some_sectors(change, random, false).into_iter().for_each(|part| part.apply(durable));
                }
            }
        }
        Kept::Anything => {
            for change in pending {
                match random.u8(0..3) {
                    0 => {}
                    1 => change.apply(durable),
                    _ => some_sectors(change, random, true).into_iter().for_each(|part| part.apply(durable)),
                }
            }
        }
    }
}

/// A write of which only some sectors arrived: the first ones, or any.
fn some_sectors(change: Change, random: &mut fastrand::Rng, any: bool) -> Vec<Change> {
    let Change::Write { offset, bytes } = change else { return Vec::new() };
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        // Sectors of the disk, not of the write.
        let len = (SECTOR - (offset + at) % SECTOR).min(bytes.len() - at);
        if random.bool() {
            parts.push(Change::Write { offset: offset + at, bytes: bytes[at..at + len].to_vec() });
        } else if !any {
            break;
        }
        at += len;
    }
    parts
}
