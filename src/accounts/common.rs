//! Passwords that many people use, known without asking anybody.
//!
//! Owns the list (`common_passwords.txt`: widely known words and runs of keys, one a line, in lower case) and the rule by
//! which a password counts as one of them: also with other case, with letters written as digits or signs, and with a few
//! digits or signs around it. Never says which entry it was.

use std::collections::HashSet;
use std::sync::LazyLock;

static LIST: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("common_passwords.txt").lines().collect());

/// Rows of keys and of signs, as fingers run over them.
const RUNS: [&str; 7] = [
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890123456789",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
    "azertyuiopqsdfghjklmwxcvbn",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
    "!@#$%^&*()_+",
];
/// What people put before and after a word to meet a rule.
const MAX_AFFIX: usize = 6;
/// Shorter stems say too little.
const MIN_STEM: usize = 4;

/// Whether a password is one that guessers try first.
pub fn is_common(password: &str) -> bool {
    let text = password.to_lowercase();
    is_listed(&text) || is_run(&text) || is_repeated(&text) || stem(&text).is_some_and(|stem| is_listed(&stem))
}

fn is_listed(text: &str) -> bool {
    LIST.contains(text) || LIST.contains(plain(text).as_str())
}

/// Letters that were written as digits or signs, written as letters.
fn plain(text: &str) -> String {
    let letter = |c| match c {
        '@' | '4' => 'a',
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    };
    text.chars().map(letter).collect()
}

/// What is left without the digits and signs around it, if that is most of it.
fn stem(text: &str) -> Option<String> {
    let end = text.trim_end_matches(|c: char| !c.is_alphabetic());
    let stem = end.trim_start_matches(|c: char| !c.is_alphabetic());
    let removed = text.chars().count() - stem.chars().count();
    let fits = (1..=MAX_AFFIX).contains(&removed) && stem.chars().count() >= MIN_STEM;
    fits.then(|| stem.to_owned())
}

/// A piece of a run in either direction, or several equal characters in a row and nothing else.
fn is_run(text: &str) -> bool {
    let backwards: String = text.chars().rev().collect();
    let on_a_row = RUNS.iter().any(|run| run.contains(text) || run.contains(&backwards));
    let distinct: HashSet<char> = text.chars().collect();
    on_a_row || distinct.len() <= 2
}

/// A short piece again and again: `abcabcabc`, `passpass`.
fn is_repeated(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let piece = |len: &usize| chars.len().is_multiple_of(*len) && chars.chunks(*len).all(|part| part == &chars[..*len]);
    (1..=chars.len() / 2).filter(|len| *len <= 6).any(|len| piece(&len))
}

/// Whether a password contains one of the names of its own account; the part of an email before the `@` is one.
pub fn contains_name(password: &str, names: &[&str]) -> bool {
    let text = password.to_lowercase();
    names.iter().any(|name| {
        let name = name.trim().to_lowercase();
        let local = name.split('@').next().unwrap_or_default();
        [name.as_str(), local].iter().any(|part| text == *part || (part.chars().count() >= 4 && text.contains(part)))
            && !text.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_folded_and_long_enough() {
        let lines: Vec<&str> = include_str!("common_passwords.txt").lines().collect();
        assert!((1000..=3000).contains(&lines.len()), "{}", lines.len());
        assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "sorted, nothing twice");
        assert!(lines.iter().all(|line| *line == line.to_lowercase().trim() && line.len() >= 3));
    }

    #[test]
    fn what_guessers_try_first_is_common() {
        for password in [
            "password123",
            "secure_password",
            "Password1!",
            "P@ssw0rd",
            "P4ssw0rd2024",
            "Qwerty123!",
            "12345678",
            "87654321",
            "aaaaaaaa",
            "abababab",
            "abcabcabc",
            "Summer2024!",
            "1qaz2wsx3edc",
            "lkjhgfdsa",
            "Welcome1",
            "iloveyou!!",
            "LETMEIN",
            "!@#$%^&*",
            "Dragon99",
        ] {
            assert!(is_common(password), "{password}");
        }
    }

    #[test]
    fn what_nobody_else_has_is_not() {
        for password in ["correct horse battery staple", "kV9-rmT2qx", "OtherPass456", "Blaugrünes Sofa 17", "x7Qp2mLz"]
        {
            assert!(!is_common(password), "{password}");
        }
    }

    #[test]
    fn names_of_the_account_are_found() {
        let names = ["johndoe", "jd@example.com"];
        assert!(contains_name("xJohnDoe99", &names) && contains_name("JD@example.com", &names));
        assert!(contains_name("jd", &names), "equal, however short");
        assert!(!contains_name("adjdust-Kiel", &names), "too short to be meant");
        assert!(!contains_name("", &[""]) && !contains_name("Something9", &[""]));
    }
}
