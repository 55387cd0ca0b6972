//! The texts of all users, and where among them a text cannot be.
//!
//! Owns one stretch of memory in which searches look, and for each block of it the kinds of three letters that are there: a
//! search looks at those blocks only that have all kinds of its text, so that a rare text costs the same among a million users
//! as among a thousand. Texts are added at the end; what is replaced stays until everything is put together anew.

use memchr::memmem;

/// A text belongs to the block in which it begins: some 150 users, looked through in a microsecond.
const BLOCK_BYTES: usize = 8 << 10;
/// Kinds of three letters that are told apart; of real names and addresses a block has some 2,000.
const KINDS_BITS: u32 = 13;
/// Blocks of which one word tells.
const BLOCKS: usize = u64::BITS as usize;

#[derive(Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    /// Where texts begin, in order, and whose they are; also those that are replaced.
    starts: Vec<(u32, u32)>,
    /// Of each block its first text, by place in `starts`.
    firsts: Vec<u32>,
    /// By 64 blocks: of each kind of three letters, the blocks that have it.
    has: Vec<Box<[u64]>>,
}

fn kinds(text: &[u8]) -> impl Iterator<Item = usize> {
    text.windows(3).map(|letters| {
        let number = u32::from_le_bytes([letters[0], letters[1], letters[2], 0]);
        (number.wrapping_mul(0x9e37_79b1) >> (u32::BITS - KINDS_BITS)) as usize
    })
}

/// Room for so many more. A list of millions that doubled whenever it is full would be half empty for long.
pub(super) fn make_room<T>(list: &mut Vec<T>, more: usize) {
    if list.capacity() - list.len() < more {
        list.reserve_exact(more.max(list.len() / 8));
    }
}

impl Texts {
    /// Takes a text of a user at the end, and says where it begins; `None` when there is no room for more.
    pub(super) fn add(&mut self, number: u32, text: &[u8]) -> Option<u32> {
        let start = u32::try_from(self.bytes.len()).ok()?;
        let block = self.bytes.len() / BLOCK_BYTES;
        while self.firsts.len() <= block {
            self.firsts.push(self.starts.len() as u32);
        }
        while self.has.len() <= block / BLOCKS {
            self.has.push(vec![0; 1 << KINDS_BITS].into_boxed_slice());
        }
        let (words, bit) = (&mut self.has[block / BLOCKS], 1 << (block % BLOCKS));
        kinds(text).for_each(|kind| words[kind] |= bit);
        make_room(&mut self.bytes, text.len());
        self.bytes.extend_from_slice(text);
        make_room(&mut self.starts, 1);
        self.starts.push((start, number));
        Some(start)
    }

    pub(super) fn get(&self, start: u32, length: u16) -> &[u8] {
        &self.bytes[start as usize..start as usize + usize::from(length)]
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let words = (self.has.len() * size_of::<u64>()) << KINDS_BITS;
        self.bytes.capacity() + self.starts.capacity() * size_of::<(u32, u32)>() + self.firsts.capacity() * 4 + words
    }

    /// The numbers of those whose text has it, in the order of the texts, once for each text; `is_current` leaves out what was
    /// replaced.
    pub(super) fn search(&self, needle: &[u8], is_current: impl Fn(u32, u32) -> bool) -> Vec<u32> {
        let finder = memmem::Finder::new(needle);
        let mut found = Vec::new();
        for (at, words) in self.has.iter().enumerate() {
            // A text shorter than three letters may be anywhere.
            let mut blocks = kinds(needle).fold(u64::MAX, |blocks, kind| blocks & words[kind]);
            while blocks != 0 {
                let block = at * BLOCKS + blocks.trailing_zeros() as usize;
                blocks &= blocks - 1;
                self.search_block(block, &finder, &is_current, &mut found);
            }
        }
        found
    }

    fn search_block(
        &self,
        block: usize,
        finder: &memmem::Finder<'_>,
        is_current: &impl Fn(u32, u32) -> bool,
        found: &mut Vec<u32>,
    ) {
        let Some(first) = self.firsts.get(block).map(|first| *first as usize) else { return };
        let last = self.firsts.get(block + 1).map_or(self.starts.len(), |next| *next as usize);
        let texts = &self.starts[first..last];
        let end = self.starts.get(last).map_or(self.bytes.len(), |(start, _)| *start as usize);
        let Some((start, _)) = texts.first() else { return };
        let (mut at, mut next) = (*start as usize, 0);
        while at < end
            && let Some(hit) = finder.find(&self.bytes[at..end])
        {
            next = first_after(texts, next, at + hit);
            let Some((start, number)) = next.checked_sub(1).and_then(|i| texts.get(i)).copied() else { return };
            if is_current(start, number) {
                found.push(number);
            }
            // Once in a text is enough.
            at = texts.get(next).map_or(end, |(start, _)| *start as usize);
        }
    }
}

/// The place of the first text that begins after `at`, looked for from `from` on: hits come in order, and often close together.
fn first_after(texts: &[(u32, u32)], from: usize, at: usize) -> usize {
    let begins_before = |(start, _): &(u32, u32)| *start as usize <= at;
    let mut step = 1;
    while texts.get(from + step).is_some_and(begins_before) {
        step *= 2;
    }
    let (low, high) = (from + step / 2, texts.len().min(from + step + 1));
    low + texts[low..high].partition_point(begins_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of many lengths, some far longer than a block's share, and some alike.
    fn many() -> Vec<String> {
        let mut random = fastrand::Rng::with_seed(7);
        let name = |at: usize| {
            let length = [3, 8, 20, 300][at % 4];
            let letters = std::iter::repeat_with(|| random.char('a'..='f')).take(length).collect::<String>();
            format!("{letters}\0{at}@example.com\0")
        };
        (0..4000).map(name).collect()
    }

    #[test]
    fn a_search_finds_what_looking_at_every_text_finds() {
        let (names, mut texts) = (many(), Texts::default());
        for (at, name) in names.iter().enumerate() {
            let start = texts.add(at as u32, name.as_bytes()).unwrap();
            assert_eq!(texts.get(start, name.len() as u16), name.as_bytes());
        }
        assert!(texts.len() > BLOCKS * BLOCK_BYTES / 2 && texts.firsts.len() > 40);
        let parts = names.iter().step_by(37).flat_map(|name| {
            let text = name.split('\0').next().unwrap();
            [1, 2, 3, 4, 7].map(|length| text[..length.min(text.len())].to_owned())
        });
        for part in parts.chain(["99@exam".into(), "zzz".into(), "7".into(), "a\0".into(), String::new()]) {
            let all = (0..names.len() as u32).filter(|at| names[*at as usize].contains(&part));
            assert_eq!(texts.search(part.as_bytes(), |_, _| true), all.collect::<Vec<_>>(), "{part:?}");
        }
        assert_eq!(texts.search(b"example", |_, number| number % 2 == 0).len(), names.len() / 2);
    }

    #[test]
    fn a_rare_text_is_looked_for_in_few_blocks() {
        let mut texts = Texts::default();
        for at in 0..200_000u32 {
            texts.add(at, format!("user{at:07}\0user{at:07}@example.com\0").as_bytes()).unwrap();
        }
        let blocks: u32 = texts
            .has
            .iter()
            .map(|words| kinds(b"r0123456").fold(u64::MAX, |blocks, kind| blocks & words[kind]).count_ones())
            .sum();
        assert!((1..=3).contains(&blocks), "{blocks} of {}", texts.firsts.len());
        assert_eq!(texts.search(b"r0123456", |_, _| true), [123_456]);
    }
}
