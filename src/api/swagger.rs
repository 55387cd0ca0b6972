//! Swagger UI as it is released: an archive inside the program, from which a file is unpacked when it is asked for.
//!
//! Owns the little of the ZIP format that this takes (stored and deflated entries, found by the archive's directory). Knows
//! nothing of documents, but for the script that tells the page where they are.

use miniz_oxide::inflate::decompress_to_vec_with_limit;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED as ARCHIVE;

/// Instead of the archive's own, which shows a pet shop.
const INITIALIZER: &str = r##"window.onload = function() {
  window.ui = SwaggerUIBundle({
    urls: [
      { name: "side port", url: "/openapi.json" },
      { name: "public port", url: "/openapi/public.json" }
    ],
    dom_id: "#swagger-ui",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [SwaggerUIBundle.plugins.DownloadUrl],
    layout: "StandaloneLayout"
  });
};
"##;

/// A file of the page, and its media type.
pub(super) fn file(name: &str) -> Option<(Vec<u8>, &'static str)> {
    let kind = match name.rsplit_once('.')?.1 {
        "html" => "text/html",
        "css" => "text/css",
        "js" => "text/javascript",
        "png" => "image/png",
        _ => return None,
    };
    let bytes = match name {
        "swagger-initializer.js" => INITIALIZER.as_bytes().to_vec(),
        _ => unpack(entry(name)?)?,
    };
    Some((bytes, kind))
}

/// A file in the archive, as its directory describes it.
struct Entry {
    deflated: bool,
    crc: usize,
    packed: usize,
    length: usize,
    /// Of the header before its bytes.
    at: usize,
}

/// The archive's `VERSION/dist/{name}`.
fn entry(name: &str) -> Option<Entry> {
    // The end of the directory is followed by a comment alone.
    let end = ARCHIVE.windows(4).rposition(|four| four == b"PK\x05\x06")?;
    let (count, mut at) = (u16_at(end + 10)?, u32_at(end + 16)?);
    for _ in 0..count {
        let [name_length, extra, comment] = [u16_at(at + 28)?, u16_at(at + 30)?, u16_at(at + 32)?];
        let path = ARCHIVE.get(at + 46..at + 46 + name_length)?;
        let mut parts = path.splitn(3, |&byte| byte == b'/').skip(1);
        if parts.next() == Some(b"dist") && parts.next() == Some(name.as_bytes()) {
            return Some(Entry {
                deflated: u16_at(at + 10)? == 8,
                crc: u32_at(at + 16)?,
                packed: u32_at(at + 20)?,
                length: u32_at(at + 24)?,
                at: u32_at(at + 42)?,
            });
        }
        at += 46 + name_length + extra + comment;
    }
    None
}

fn unpack(entry: Entry) -> Option<Vec<u8>> {
    let start = entry.at + 30 + u16_at(entry.at + 26)? + u16_at(entry.at + 28)?;
    let packed = ARCHIVE.get(start..start + entry.packed)?;
    let bytes = match entry.deflated {
        true => decompress_to_vec_with_limit(packed, entry.length).ok()?,
        false => packed.to_vec(),
    };
    (crc32fast::hash(&bytes) as usize == entry.crc).then_some(bytes)
}

fn u16_at(at: usize) -> Option<usize> {
    ARCHIVE.get(at..)?.first_chunk().map(|two| usize::from(u16::from_le_bytes(*two)))
}

fn u32_at(at: usize) -> Option<usize> {
    ARCHIVE.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_unpacked_whole() {
        let (page, kind) = file("index.html").unwrap();
        assert_eq!(kind, "text/html");
        let page = String::from_utf8(page).unwrap();
        let named = page.split('"').filter(|part| part.starts_with("./")).map(|part| &part[2..]);
        let sizes: Vec<usize> = named.map(|name| file(name).unwrap().0.len()).collect();
        assert!(sizes.len() >= 6 && sizes.iter().max() > Some(&1_000_000), "{sizes:?}");
        assert_eq!(file("favicon-32x32.png").unwrap().0.first_chunk(), Some(b"\x89PNG"));
    }

    #[test]
    fn nothing_else_is_found() {
        for name in ["", ".", "..", "none.js", "../package.json", "swagger-ui.css/", "dist/index.css", ".agignore"] {
            assert!(file(name).is_none(), "{name}");
        }
    }
}
