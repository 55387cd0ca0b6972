//! Letters as text and HTML.
//!
//! Owns the letters' templates: those built in, and an operator's own in their place (`mail.templates`: `NAME.txt`, whose
//! first line is the subject, `NAME.html`, or `layout.html` for all). HTML is escaped by the template engine, and a subject
//! is one line whatever the facts hold. Never builds a link.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use super::LetterKind;

const LAYOUT: &str = include_str!("letters/layout.html");
/// Longest subject, in characters.
const MAX_SUBJECT: usize = 200;

/// A letter ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// Renders a letter with its facts.
///
/// # Errors
/// A sentence that names the template.
pub fn render(kind: LetterKind, facts: &BTreeMap<String, String>, own: Option<&Path>) -> Result<Rendered, String> {
    let name = kind.as_str();
    // Some come from users: a line break in one must not end the subject.
    let one_line = |text: &String| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let facts: BTreeMap<&str, String> = facts.iter().map(|(name, fact)| (name.as_str(), one_line(fact))).collect();
    let text = file(own, &format!("{name}.txt"))?;
    let source = text.as_deref().unwrap_or_else(|| kind.template());
    let mut engine = Environment::new();
    // A fact that is not there is a mistake in the template, unless it is asked about.
    engine.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    engine.set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
    let wrong = |what: &str, error: minijinja::Error| format!("mail.templates: {what}: {error}");
    let rendered =
        engine.render_named_str("letter.txt", source, &facts).map_err(|e| wrong(&format!("{name}.txt"), e))?;
    let (subject, text) = rendered.split_once('\n').unwrap_or((rendered.as_str(), ""));
    let subject: String = subject.chars().filter(|c| !c.is_control()).take(MAX_SUBJECT).collect();
    let text = text.trim().to_owned();
    let html = match file(own, &format!("{name}.html"))? {
        Some(whole) => {
            engine.render_named_str("letter.html", &whole, &facts).map_err(|e| wrong(&format!("{name}.html"), e))?
        }
        None => {
            let layout = file(own, "layout.html")?;
            let split = text.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
            let paragraphs: Vec<String> = split.map(str::to_owned).collect();
            let facts = context! { subject => subject.as_str(), paragraphs, link => facts.get("link") };
            let layout = layout.as_deref().unwrap_or(LAYOUT);
            engine.render_named_str("layout.html", layout, facts).map_err(|e| wrong("layout.html", e))?
        }
    };
    Ok(Rendered { subject: subject.trim().to_owned(), text, html })
}

fn file(own: Option<&Path>, name: &str) -> Result<Option<String>, String> {
    let Some(dir) = own else { return Ok(None) };
    match std::fs::read_to_string(dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("mail.templates: cannot read {}: {error}", dir.join(name).display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn all() -> BTreeMap<String, String> {
        facts(&[
            ("name", "Ann <b>"),
            ("username", "ann"),
            ("email", "ann@example.com"),
            ("new_email", "new@example.com"),
            ("link", "https://x.example/v1/users/verify-email?token=a&b"),
            ("hours", "24"),
            ("minutes", "60"),
            ("address", "10.0.0.1"),
            ("agent", "curl"),
            ("key", "laptop"),
            ("provider", "google"),
            ("days", "30"),
        ])
    }

    #[test]
    fn every_letter_is_whole_and_escaped() {
        for kind in LetterKind::ALL {
            let letter = render(*kind, &all(), None).unwrap();
            assert!(!letter.subject.is_empty() && letter.text.contains("Ann <b>"), "{kind:?}");
            assert!(letter.html.contains("Ann &lt;b&gt;") && !letter.html.contains("<b>"), "{kind:?}");
            assert!(!letter.text.contains("{{"), "{kind:?}");
        }
        let letter = render(LetterKind::VerifyEmail, &all(), None).unwrap();
        assert!(letter.html.contains("<a href=\"https:&#x2f;&#x2f;x.example"), "{}", letter.html);
        assert!(letter.text.contains("token=a&b"));
    }

    #[test]
    fn an_operator_s_own_take_their_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("verify_email.txt"), "Willkommen {{ name }}\n\nHallo\n\n{{ link }}\n").unwrap();
        std::fs::write(dir.path().join("layout.html"), "<main>{{ paragraphs[0] }}</main>").unwrap();
        let mut facts = all();
        facts.insert("name".into(), "Eve\r\nBcc: all@example.com".into());
        let letter = render(LetterKind::VerifyEmail, &facts, Some(dir.path())).unwrap();
        assert!(!letter.subject.contains(['\r', '\n']) && letter.subject.starts_with("Willkommen Eve"));
        assert_eq!(letter.html, "<main>Hallo</main>");
        std::fs::write(dir.path().join("verify_email.txt"), "{{ nonsense }}").unwrap();
        assert!(render(LetterKind::VerifyEmail, &facts, Some(dir.path())).unwrap_err().contains("verify_email.txt"));
    }
}
