//! Names of models: when two are the same, and which patterns match one.
//!
//! Owns the rule that blanks around a name and the case of its letters tell no models apart: most services take either
//! spelling, and none may be a way around a price or a list. Never knows a model.

use std::borrow::Cow;

/// A model's name as all its spellings come to. Letters beyond ASCII are rare and fold by Unicode's simple rules.
pub fn fold(name: &str) -> Cow<'_, str> {
    let name = name.trim();
    if !name.is_ascii() {
        // By way of capitals, so that letters that share one are one: `ſ` and `s`.
        return Cow::Owned(name.to_uppercase().to_lowercase());
    }
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(name.to_ascii_lowercase());
    }
    Cow::Borrowed(name)
}

/// Whether one of the patterns matches: `gpt-4*` what begins so, any other itself. None at all match everything.
pub fn allows(patterns: &[String], name: &str) -> bool {
    if patterns.is_empty() {
        return true;
    }
    let name = fold(name);
    patterns.iter().any(|pattern| match pattern.trim().strip_suffix('*') {
        Some(head) => name.starts_with(&*fold(head)),
        None => name == fold(pattern),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_model_are_one() {
        for name in ["gpt-4o", "GPT-4o", " gpt-4O\t", "\n\u{A0}Gpt-4o\u{3000}"] {
            assert_eq!(fold(name), "gpt-4o", "{name:?}");
        }
        assert_eq!(fold("claude-\u{17F}onnet"), "claude-sonnet");
        assert_eq!(fold("\u{212A}imi-k2"), "kimi-k2");
        assert!(matches!(fold(" gpt-4o "), Cow::Borrowed(_)), "the usual name costs nothing");
        assert_ne!(fold("gpt 4o"), fold("gpt4o"));
    }

    #[test]
    fn patterns_end_in_a_star_and_none_let_everything_through() {
        let patterns = ["GPT-4*".to_owned(), "o1".to_owned()];
        for name in ["gpt-4o", "Gpt-4", " o1", "O1"] {
            assert!(allows(&patterns, name), "{name}");
        }
        for name in ["o1-mini", "gpt-3", "", "xgpt-4"] {
            assert!(!allows(&patterns, name), "{name}");
        }
        assert!(allows(&[], "anything"));
    }
}
