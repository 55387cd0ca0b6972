//! The trail's files: what a start takes over, how records are added, when a segment ends and when an old one goes.
//!
//! Owns the directory and the chain's end. The machinery is the conversation journal's: a head, then records with length,
//! sequence and CRC-32, and a torn tail that is cut before the next record is written. Nothing is changed by opening: a
//! look at a trail, also at a broken one, leaves it as it is. Never decides what is recorded.
//!
//! A segment's head has 32 bytes: `tgaudit1`, format version (4), first sequence (8), its first record's time (8), CRC-32 of
//! these (4).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain::{ChainKey, Head, Link, Place, links_of};
use super::record::Record;
use super::summary::{Entry, Summary};
use crate::actors::writer::segment::{
    Disk, Found, RECORD_HEAD_BYTES, SEGMENT_HEAD_BYTES, Scanner, SegmentFile, append_record, invalid, list_segments,
    read_record, segment_path, u32_at, u64_at,
};
use crate::clock::UnixMillis;
use crate::failpoint;

const MAGIC: &[u8; 8] = b"tgaudit1";
const VERSION: u32 = 1;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHead {
    pub first_seq: u64,
    pub created_ms: u64,
}

impl SegmentHead {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD_BYTES as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        out.extend_from_slice(&self.created_ms.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = [0; SEGMENT_HEAD_BYTES as usize];
        File::open(path)?.read_exact_at(&mut bytes, 0)?;
        if !bytes.starts_with(MAGIC) {
            return Err(invalid("not a segment of the audit trail"));
        }
        if u32_at(&bytes, 8) != VERSION {
            return Err(invalid("written by another version of the audit trail's format"));
        }
        if crc32fast::hash(&bytes[..28]) != u32_at(&bytes, 28) {
            return Err(invalid("segment head fails its checksum"));
        }
        Ok(Self { first_seq: u64_at(&bytes, 12), created_ms: u64_at(&bytes, 20) })
    }
}

/// A record and when it happened.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub at: UnixMillis,
    pub record: Record,
}

/// What a start found that should not be so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Bytes at the end that a crash left of an unfinished write.
    pub torn_bytes: u64,
    /// Records that the store knows of and the files do not have: first and last.
    pub lost: Option<(u64, u64)>,
    /// The newest record is not the one that the store knows of.
    pub differs: bool,
}

/// A segment that is not written any more.
struct Sealed {
    first_seq: u64,
    path: PathBuf,
}

pub(super) struct Trail {
    dir: PathBuf,
    disk: Box<dyn Disk>,
    key: ChainKey,
    segment_bytes: u64,
    sealed: Vec<Sealed>,
    active: Option<(u64, PathBuf, ActiveFile)>,
    head: Head,
    /// Held, not read: while it is locked no other process writes here.
    _lock: File,
}

impl Trail {
    /// Takes over what is there. `known` is how far the store says the trail had come.
    pub(super) fn open(
        dir: PathBuf,
        disk: Box<dyn Disk>,
        key: ChainKey,
        segment_bytes: u64,
        known: Option<Head>,
    ) -> io::Result<(Self, Summary, Findings)> {
        let lock = lock_dir(&dir, &*disk)?;
        let mut trail = Self {
            dir,
            disk,
            key,
            segment_bytes: segment_bytes.max(4096),
            sealed: Vec::new(),
            active: None,
            head: Head::EMPTY,
            _lock: lock,
        };
        let (summary, findings) = trail.recover(known.unwrap_or(Head::EMPTY))?;
        Ok((trail, summary, findings))
    }

    fn recover(&mut self, known: Head) -> io::Result<(Summary, Findings)> {
        let mut segments = list_segments(&self.dir)?;
        // The creation of the newest one may have been cut off; nothing can be in it then.
        segments.retain(|(_, path)| fs::metadata(path).is_ok_and(|meta| meta.len() >= SEGMENT_HEAD_BYTES));
        let (mut summary, mut findings) = (Summary::default(), Findings::default());
        let mut newest = None;
        for (first_seq, path) in segments.iter().rev() {
            let scanned = Scanned::of(path, *first_seq)?;
            if newest.is_none() || self.head == Head::EMPTY {
                self.head = scanned.head.unwrap_or(Head::EMPTY);
            }
            let is_newest = newest.is_none();
            summary.put_older(scanned.entries);
            if is_newest {
                newest = Some((scanned.len, scanned.torn_bytes, scanned.damaged));
            }
            if summary.is_full() && self.head != Head::EMPTY {
                break;
            }
        }
        if self.head.sequence < known.sequence {
            findings.lost = Some((self.head.sequence + 1, known.sequence));
            // The chain goes on from what is known to have been: the hole stays visible for ever.
            self.head = known;
        } else if self.head.sequence == known.sequence {
            findings.differs = self.head.mac != known.mac;
        }
        let last = segments.pop();
        if let Some((_, path)) = &last {
            // A process that was killed may have left its last records in the system's memory alone. The store is about to be
            // told of them.
            self.disk.open(path)?.sync_data()?;
        }
        self.sealed = segments.into_iter().map(|(first_seq, path)| Sealed { first_seq, path }).collect();
        if let (Some((first_seq, path)), Some((len, torn_bytes, damaged))) = (last, newest) {
            findings.torn_bytes = torn_bytes;
            let is_sound = !damaged && findings.lost.is_none();
            match SegmentHead::read(&path) {
                // Its first record was never finished: the next one begins the segment anew.
                Ok(_) if is_sound && len == SEGMENT_HEAD_BYTES && first_seq == self.head.sequence + 1 => {}
                Ok(head) if is_sound && head.first_seq == first_seq => {
                    let file = self.disk.open(&path)?;
                    let file = ActiveFile { file, created_ms: head.created_ms, len, has_more: torn_bytes > 0 };
                    self.active = Some((first_seq, path, file));
                }
                // Left as it is: nothing new is put at risk, and the evidence stays.
                _ => self.sealed.push(Sealed { first_seq, path }),
            }
        }
        // A segment without a single readable record holds its name all the same.
        let taken = self.sealed.last().map_or(0, |segment| segment.first_seq);
        self.head.sequence = self.head.sequence.max(taken);
        Ok((summary, findings))
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    pub(super) fn segments(&self) -> usize {
        self.sealed.len() + usize::from(self.active.is_some())
    }

    /// Adds records and has them on disk when it returns; after an error nothing of them counts and nothing has changed.
    pub(super) fn append(&mut self, drafts: &[Draft]) -> io::Result<Vec<Entry>> {
        let Some(first) = drafts.first() else { return Ok(Vec::new()) };
        let mut head = self.head;
        let mut bytes = Vec::new();
        let mut offsets = Vec::with_capacity(drafts.len());
        for Draft { at, record } in drafts {
            let place = Place { seq: head.sequence + 1, user: record.user(), at_ms: at.0 };
            offsets.push(bytes.len() as u64);
            let mut mac = Link::GENESIS;
            append_record(&mut bytes, (place.seq, place.user, place.at_ms), |out| {
                let start = out.len();
                record.encode(place.seq, *at, out);
                mac = self.key.seal(place, head.mac, out, start);
            });
            head = Head { sequence: place.seq, mac };
        }
        self.make_room(bytes.len() as u64, first.at.0)?;
        let Some((segment, _, file)) = &mut self.active else { return Err(invalid("no segment is open")) };
        let start = file.len;
        file.append(&bytes)?;
        self.head = head;
        let entries = offsets.iter().filter_map(|offset| {
            let offset = start + offset;
            let record = bytes.get((offset - start) as usize..)?;
            let len = u32_at(record, 0) as usize;
            let payload = record.get(RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + len)?;
            Entry::read(*segment, offset, u64_at(record, 4), u64_at(record, 20), payload)
        });
        Ok(entries.collect())
    }

    fn make_room(&mut self, wanted: u64, at_ms: u64) -> io::Result<()> {
        let is_full = |file: &ActiveFile| file.len > SEGMENT_HEAD_BYTES && file.len + wanted > self.segment_bytes;
        if self.active.as_ref().is_some_and(|(.., file)| is_full(file)) {
            self.seal()?;
        }
        if self.active.is_none() {
            let first_seq = self.head.sequence + 1;
            let path = segment_path(&self.dir, first_seq);
            // What a creation left that was cut off.
            remove_if_there(&path)?;
            let head = SegmentHead { first_seq, created_ms: at_ms };
            let file = self.create_file(&path, head).inspect_err(|_| {
                remove_if_there(&path).ok();
            })?;
            let file = ActiveFile { file, created_ms: at_ms, len: SEGMENT_HEAD_BYTES, has_more: false };
            self.active = Some((first_seq, path, file));
        }
        Ok(())
    }

    fn create_file(&self, path: &Path, head: SegmentHead) -> io::Result<Box<dyn SegmentFile>> {
        let mut file = self.disk.create(path)?;
        file.write_all_at(&head.encode(), 0)?;
        file.sync_data()?;
        failpoint::hit("audit.after_head");
        self.disk.sync_dir(&self.dir)?;
        Ok(file)
    }

    fn seal(&mut self) -> io::Result<()> {
        if let Some((.., file)) = &mut self.active {
            // What failed before is written anew, in the next segment.
            file.cut_back()?;
        }
        if let Some((first_seq, path, _)) = self.active.take() {
            self.sealed.push(Sealed { first_seq, path });
        }
        Ok(())
    }

    /// Ends the segment being written when it began before `limit_ms`, so that time alone can retire it.
    pub(super) fn seal_if_older(&mut self, limit_ms: u64) -> io::Result<()> {
        let is_old = |file: &ActiveFile| file.len > SEGMENT_HEAD_BYTES && file.created_ms < limit_ms;
        if self.active.as_ref().is_some_and(|(.., file)| is_old(file)) {
            self.seal()?;
        }
        Ok(())
    }

    /// The end of what may be deleted because its newest record is older than `limit_ms`: the last record that would go.
    /// The newest segment always stays.
    pub(super) fn expired(&self, limit_ms: u64) -> io::Result<Option<Head>> {
        let mut end = None;
        let active = self.active.as_ref().map(|(_, path, _)| path);
        let followers = self.sealed.iter().skip(1).map(|segment| &segment.path).chain(active);
        for next in followers {
            // A segment began when the one before it had ended.
            if SegmentHead::read(next)?.created_ms >= limit_ms {
                break;
            }
            end = Some(next);
        }
        let Some(next) = end else { return Ok(None) };
        let (head, payload) = read_record(&File::open(next)?, SEGMENT_HEAD_BYTES)?;
        let links = links_of(&payload).ok_or_else(|| invalid("a segment begins with no whole record"))?;
        Ok(Some(Head { sequence: head.seq - 1, mac: links.prev }))
    }

    /// The first sequence there is.
    pub(super) fn first_sequence(&self) -> u64 {
        let active = self.active.as_ref().map(|(first_seq, ..)| *first_seq);
        self.sealed.first().map(|segment| segment.first_seq).or(active).unwrap_or(self.head.sequence + 1)
    }

    /// Deletes the segments whose records all come before or with `last`. To be called once the trail says so itself.
    pub(super) fn delete_through(&mut self, last: u64) -> io::Result<()> {
        while let [oldest, next, ..] = self.sealed.as_slice() {
            if next.first_seq > last + 1 {
                break;
            }
            self.remove(oldest)?;
            self.sealed.remove(0);
        }
        if let ([oldest], Some((first_seq, ..))) = (self.sealed.as_slice(), &self.active)
            && *first_seq <= last + 1
        {
            self.remove(oldest)?;
            self.sealed.clear();
        }
        Ok(())
    }

    /// For good before the next one: what a crash leaves must have no hole.
    fn remove(&self, segment: &Sealed) -> io::Result<()> {
        remove_if_there(&segment.path)?;
        failpoint::hit("audit.after_remove");
        self.disk.sync_dir(&self.dir)
    }
}

/// What a walk through one segment met.
pub(super) struct Scanned {
    pub entries: Vec<Entry>,
    pub head: Option<Head>,
    pub len: u64,
    pub torn_bytes: u64,
    pub damaged: bool,
}

impl Scanned {
    pub(super) fn of(path: &Path, first_seq: u64) -> io::Result<Self> {
        let mut scanner = Scanner::open(path, first_seq)?;
        let mut scanned =
            Self { entries: Vec::new(), head: None, len: SEGMENT_HEAD_BYTES, torn_bytes: 0, damaged: false };
        loop {
            match scanner.step()? {
                Found::Record { offset, head } => {
                    let payload = scanner.payload();
                    scanned.len = offset + RECORD_HEAD_BYTES as u64 + u64::from(head.len);
                    scanned.entries.extend(Entry::read(first_seq, offset, head.seq, head.timestamp_ms, payload));
                    match links_of(payload) {
                        Some(links) => scanned.head = Some(Head { sequence: head.seq, mac: links.mac }),
                        None => scanned.damaged = true,
                    }
                }
                Found::Damaged { .. } => scanned.damaged = true,
                Found::Torn { bytes, .. } => scanned.torn_bytes = bytes,
                Found::End => return Ok(scanned),
            }
        }
    }
}

/// The segment being written. `len` is what counts; bytes past it are an attempt that failed, or what a crash left.
struct ActiveFile {
    file: Box<dyn SegmentFile>,
    created_ms: u64,
    len: u64,
    has_more: bool,
}

impl ActiveFile {
    /// Puts `bytes` after those that count and has them on disk, or leaves nothing of them.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.cut_back()?;
        self.has_more = true;
        if let Err(error) = self.file.write_all_at(bytes, self.len).and_then(|()| self.file.sync_data()) {
            // After a failed sync the kernel may call pages clean that the disk never got: they are cut off and written
            // anew, so that the next sync means something again.
            self.cut_back().ok();
            return Err(error);
        }
        self.has_more = false;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn cut_back(&mut self) -> io::Result<()> {
        if self.has_more {
            self.file.set_len(self.len)?;
            self.has_more = false;
        }
        Ok(())
    }
}

/// Makes the directory and takes it for this process. Names, addresses and who did what are for nobody else on the machine.
fn lock_dir(dir: &Path, disk: &dyn Disk) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    failpoint::hit("audit.after_create");
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join("LOCK"))?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => {
            io::Error::new(io::ErrorKind::WouldBlock, "another process writes this audit trail")
        }
        fs::TryLockError::Error(error) => error,
    })?;
    disk.sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)?;
    }
    Ok(lock)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
