//! A disk whose power can be cut: what was not synced is then lost, in whole or in part.
//!
//! A file system in a process's memory, mounted through `/dev/fuse` (which takes root). Each file keeps what is durable
//! apart from the writes that came since its last sync, and each directory what is durable apart from the names that came
//! and went since it was synced itself. A power cut keeps the durable part and, by chance, nothing, a beginning, or any
//! selection of the rest, down to single sectors of a write. That a new file is synced says nothing about its name.
//!
//! Names are of one of two kinds ([`Names`]). With a journal, as ext4, xfs and btrfs, they are kept or lost in the order in
//! which they changed, and a rename as a whole. Without one, as ext2 and FAT, each entry is on its own: of a rename within
//! one folder the old name may stay, the new one come, both, or neither. What leads from one folder to another, and what
//! renames a folder, is whole in both kinds: no program could do anything about it.

mod fuse;

use std::collections::{BTreeMap, BTreeSet};
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

    /// As [`Disk::cut_power`], and of the changes to names nothing is kept that was not synced.
    pub fn lose_names(&mut self, random: &mut fastrand::Rng) {
        self.order("forget names");
        self.cut_power(random);
    }

    /// Loses everything: a new disk.
    pub fn wipe(&mut self, names: Names) {
        self.order(match names {
            Names::Journaled => "wipe journaled",
            Names::Plain => "wipe plain",
        });
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
            None if order == "forget names" => tree.lock().unwrap().pending.clear(),
            None if order == "wipe plain" => tree.lock().unwrap().wipe(Names::Plain),
            None => tree.lock().unwrap().wipe(Names::Journaled),
        }
        println!("{DONE}");
    }
    let _ = Command::new("umount").arg("-l").arg(at).status();
    ExitCode::SUCCESS
}

/// What may be left of a rename, before and after its folder's sync, of a file that was written and synced meanwhile. It is
/// looked at before anything is concluded from this disk.
pub fn check() {
    let left = |kind: Names, synced: bool| -> BTreeSet<String> {
        let cut = |seed| {
            let mut tree = Tree::new();
            tree.wipe(kind);
            let id = tree.create(ROOT, "old", 0o600, file()).unwrap();
            tree.sync(ROOT).unwrap();
            tree.rename((ROOT, "old"), (ROOT, "new")).unwrap();
            tree.change(id, Change::Write { offset: 0, bytes: vec![7] }).unwrap();
            tree.sync(id).unwrap();
            if synced {
                tree.sync(ROOT).unwrap();
            }
            tree.cut_power(&mut fastrand::Rng::with_seed(seed));
            let names = tree.names(ROOT).unwrap();
            assert!(names.values().all(|own| *own == id && tree.read(id, 0, 9) == Ok(&[7])), "its content is on disk");
            names.keys().cloned().collect::<Vec<_>>().join(" and ")
        };
        (0..200).map(cut).collect()
    };
    let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(left(Names::Journaled, false), expected(&["old", "new"]));
    assert_eq!(left(Names::Plain, false), expected(&["old", "new", "new and old", ""]));
    for kind in [Names::Journaled, Names::Plain] {
        assert_eq!(left(kind, true), expected(&["new"]));
    }
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

/// What becomes of names that are not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// A beginning of all changes is kept, each as a whole.
    Journaled,
    /// Any entries are.
    Plain,
}

/// A change of one entry.
#[derive(Clone, Debug)]
struct Entry {
    folder: u64,
    name: String,
    /// `None`: the name went.
    node: Option<u64>,
}

/// What one call changed of names, and no sync has made durable yet.
#[derive(Clone, Debug)]
struct Naming {
    entries: Vec<Entry>,
    /// Kept or lost with all its entries, whatever the disk.
    is_whole: bool,
}

type Listing = BTreeMap<String, u64>;

#[derive(Debug)]
enum Content {
    File { data: Vec<u8>, durable: Vec<u8>, pending: Vec<Change> },
    Folder { names: Listing, durable: Listing },
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
    kind: Names,
    /// Of all folders, in order.
    pending: Vec<Naming>,
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
        let mut tree = Self { nodes: BTreeMap::new(), next: ROOT + 1, kind: Names::Journaled, pending: Vec::new() };
        tree.wipe(Names::Journaled);
        tree
    }

    fn wipe(&mut self, kind: Names) {
        self.kind = kind;
        self.pending.clear();
        self.nodes.clear();
        self.nodes.insert(ROOT, Node { mode: 0o755, content: folder() });
    }

    fn names(&self, folder: u64) -> Result<&Listing, i32> {
        match self.nodes.get(&folder).map(|node| &node.content) {
            Some(Content::Folder { names, .. }) => Ok(names),
            Some(Content::File { .. }) => Err(errno::ENOTDIR),
            None => Err(errno::ENOENT),
        }
    }

    fn look_up(&self, folder: u64, name: &str) -> Result<u64, i32> {
        self.names(folder)?.get(name).copied().ok_or(errno::ENOENT)
    }

    /// How many names a file or folder has.
    fn links(&self, id: u64) -> u32 {
        let listings = self.nodes.keys().filter_map(|folder| self.names(*folder).ok());
        listings.flat_map(BTreeMap::values).filter(|own| **own == id).count() as u32
    }

    /// Changes names, all at once.
    fn change_names(&mut self, entries: Vec<Entry>, is_whole: bool) -> Result<(), i32> {
        for entry in &entries {
            self.names(entry.folder)?;
        }
        for Entry { folder, name, node } in &entries {
            if let Some(Node { content: Content::Folder { names, .. }, .. }) = self.nodes.get_mut(folder) {
                set(names, name, *node);
            }
        }
        self.pending.push(Naming { entries, is_whole });
        Ok(())
    }

    fn make_durable(&mut self, entries: &[Entry]) {
        for Entry { folder, name, node } in entries {
            if let Some(Node { content: Content::Folder { durable, .. }, .. }) = self.nodes.get_mut(folder) {
                set(durable, name, *node);
            }
        }
    }

    fn create(&mut self, folder: u64, name: &str, mode: u32, content: Content) -> Result<u64, i32> {
        if self.names(folder)?.contains_key(name) {
            return Err(errno::EEXIST);
        }
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, Node { mode: mode & 0o7777, content });
        self.change_names(vec![Entry { folder, name: name.to_owned(), node: Some(id) }], true)?;
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
        self.change_names(vec![Entry { folder, name: name.to_owned(), node: None }], true)
    }

    fn rename(&mut self, (folder, from): (u64, &str), (to_folder, to): (u64, &str)) -> Result<(), i32> {
        let id = self.look_up(folder, from)?;
        if let Ok(there) = self.look_up(to_folder, to) {
            if there == id {
                // Two names of one file: nothing happens, says POSIX.
                return Ok(());
            }
            if self.names(there).is_ok_and(|names| !names.is_empty()) {
                return Err(errno::ENOTEMPTY);
            }
        }
        let is_whole = folder != to_folder || self.names(id).is_ok();
        let gone = Entry { folder, name: from.to_owned(), node: None };
        self.change_names(vec![gone, Entry { folder: to_folder, name: to.to_owned(), node: Some(id) }], is_whole)
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
            Some(Content::Folder { .. }) => self.sync_names(id),
            None => return Err(errno::ENOENT),
        }
        Ok(())
    }

    fn sync_names(&mut self, folder: u64) {
        let is_its = |entry: &Entry| entry.folder == folder;
        let pending = std::mem::take(&mut self.pending);
        match self.kind {
            Names::Journaled => {
                // Its newest change and all before it, as they stand in the journal.
                let last = pending.iter().rposition(|naming| naming.entries.iter().any(is_its));
                let (synced, rest) = pending.split_at(last.map_or(0, |last| last + 1));
                synced.iter().for_each(|naming| self.make_durable(&naming.entries));
                self.pending = rest.to_vec();
            }
            Names::Plain => {
                for Naming { entries, is_whole } in pending {
                    let (synced, rest): (Vec<_>, Vec<_>) = match is_whole {
                        true if entries.iter().any(is_its) => (entries, Vec::new()),
                        _ => entries.into_iter().partition(is_its),
                    };
                    self.make_durable(&synced);
                    if !rest.is_empty() {
                        self.pending.push(Naming { entries: rest, is_whole });
                    }
                }
            }
        }
    }

    /// What of the changed names reaches the disk although nobody waited for it.
    fn keep_names(&mut self, random: &mut fastrand::Rng) {
        let pending = std::mem::take(&mut self.pending);
        let kept: Vec<Entry> = match (self.kind, random.u8(0..3)) {
            (_, 0) => Vec::new(),
            (Names::Plain, 1) => {
                let parts = pending.into_iter().flat_map(|Naming { entries, is_whole }| match is_whole {
                    true => vec![entries],
                    false => entries.into_iter().map(|entry| vec![entry]).collect(),
                });
                parts.filter(|_| random.bool()).flatten().collect()
            }
            _ => {
                let so_many = random.usize(0..=pending.len());
                pending.into_iter().take(so_many).flat_map(|naming| naming.entries).collect()
            }
        };
        self.make_durable(&kept);
    }

    fn cut_power(&mut self, random: &mut fastrand::Rng) {
        self.keep_names(random);
        let kept = [Kept::Nothing, Kept::Beginning, Kept::Anything][random.usize(0..3)];
        for node in self.nodes.values_mut() {
            match &mut node.content {
                Content::File { data, durable, pending } => {
                    keep(kept, std::mem::take(pending), durable, random);
                    data.clone_from(durable);
                }
                Content::Folder { names, durable } => names.clone_from(durable),
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
    Content::Folder { names: Listing::new(), durable: Listing::new() }
}

fn file() -> Content {
    Content::File { data: Vec::new(), durable: Vec::new(), pending: Vec::new() }
}

fn set(names: &mut Listing, name: &str, node: Option<u64>) {
    match node {
        Some(id) => names.insert(name.to_owned(), id),
        None => names.remove(name),
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
