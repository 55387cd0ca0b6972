//! A search for secrets in whatever a gateway leaves behind: in the clear, or as hexadecimal digits or base64.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem;

/// Secrets by name, in every form in which one could lie somewhere.
#[derive(Default)]
pub struct Secrets {
    known: Vec<(String, Vec<Vec<u8>>)>,
}

impl Secrets {
    /// A text; shorter ones than this are found by chance.
    pub fn add(&mut self, name: &str, text: &str) {
        assert!(text.len() >= 8, "{name}");
        let swapped = if text.chars().any(char::is_lowercase) { text.to_uppercase() } else { text.to_lowercase() };
        let mut forms = forms_of(text.as_bytes());
        // Codes are taken in either case; long random texts are not, and finding them so does no harm.
        forms.push(swapped.into_bytes());
        self.known.push((name.to_owned(), forms));
    }

    /// Bytes that a client sees only in some other form.
    pub fn add_bytes(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 8, "{name}");
        self.known.push((name.to_owned(), forms_of(bytes)));
    }

    /// Six digits, which chance brings too: only where nothing goes on before or after them.
    pub fn add_digits(&mut self, name: &str, digits: &str) {
        assert!(digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_digit()), "{name}");
        self.known.push((name.to_owned(), vec![digits.as_bytes().to_vec()]));
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn forms(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.known.iter().flat_map(|(name, forms)| forms.iter().map(move |form| (name.as_str(), form.as_slice())))
    }

    /// The names of those that are somewhere in the bytes.
    pub fn found_in(&self, bytes: &[u8]) -> Vec<&str> {
        let goes_on = |at: Option<usize>| {
            at.and_then(|at| bytes.get(at)).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'.')
        };
        let has = |form: &Vec<u8>| {
            memmem::find_iter(bytes, form)
                .any(|at| form.len() > 6 || !(goes_on(at.checked_sub(1)) || goes_on(Some(at + form.len()))))
        };
        self.known.iter().filter(|(_, forms)| forms.iter().any(has)).map(|(name, _)| name.as_str()).collect()
    }

    /// What is in the files below a folder, but for one folder in it.
    pub fn found_below(&self, folder: &Path, but: &Path) -> Vec<(String, PathBuf)> {
        files_below(folder, but)
            .into_iter()
            .flat_map(|file| {
                let bytes = std::fs::read(&file).unwrap();
                let names: Vec<String> = self.found_in(&bytes).into_iter().map(str::to_owned).collect();
                names.into_iter().map(move |name| (name, file.clone()))
            })
            .collect()
    }
}

pub fn files_below(folder: &Path, but: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path == but => {}
            true => files.extend(files_below(&path, but)),
            false => files.push(path),
        }
    }
    files
}

fn forms_of(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![bytes.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    // Inside a longer text, base64 depends on where it begins, and its first and last digits on the neighbours.
    for shift in 0..3 {
        let padded = [vec![0; shift], bytes.to_vec()].concat();
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let digits = engine.encode(&padded).into_bytes();
            let (from, to) = ((shift * 8).div_ceil(6), padded.len() * 8 / 6);
            forms.push(digits[from..to].to_vec());
        }
    }
    forms
}

#[test]
fn the_search_finds_what_is_there_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let apart = folder.path().join("secrets");
    std::fs::create_dir_all(folder.path().join("store/deep")).unwrap();
    std::fs::create_dir(&apart).unwrap();
    let mut secrets = Secrets::default();
    secrets.add("key", "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y");
    secrets.add_bytes("seed", &[7, 9, 200, 31, 66, 1, 255, 0, 12, 13]);
    secrets.add_digits("code", "123456");
    std::fs::write(apart.join("pepper"), "pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y").unwrap();
    let noise: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let file = folder.path().join("store/deep/db");
    std::fs::write(&file, [noise.as_slice(), b" 1234567 x123456 .123456Z ", &noise].concat()).unwrap();
    assert_eq!(secrets.found_below(folder.path(), &apart), []);
    for (name, form) in secrets.forms() {
        std::fs::write(&file, [noise.as_slice(), b"\"", form, b"\"", &noise].concat()).unwrap();
        assert_eq!(secrets.found_below(folder.path(), &apart), [(name.to_owned(), file.clone())]);
    }
    // As it stands inside another text that was encoded as a whole.
    for before in ["", "a", "ab", "abc"] {
        let whole = format!("{before}pe-rqrFLve5ZM63ZL1XtREaiLrlrNreu20Y and more");
        assert_eq!(secrets.found_in(STANDARD_NO_PAD.encode(whole).as_bytes()), ["key"], "{before}");
    }
}
