//! Conversation records as Parquet: the table's columns, and the row groups they are written in.
//!
//! Owns the schema and the way from a record's JSON into columns. It holds one row group in memory and never looks at which
//! records these are.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clock::UnixMillis;

/// Most rows of a group.
const GROUP_ROWS: usize = 50_000;
/// Bytes of texts after which a group ends.
const GROUP_BYTES: usize = 32 << 20;
/// Fast, and close to what more time would gain.
const ZSTD_LEVEL: i32 = 3;

/// Optional is what redaction may have dropped, and what not every call has. `request` is JSON text, `response` plain
/// text.
const SCHEMA: &str = "
message conversation {
    REQUIRED INT64 id;
    REQUIRED INT64 user_id;
    OPTIONAL BYTE_ARRAY username (STRING);
    OPTIONAL BYTE_ARRAY email (STRING);
    REQUIRED BYTE_ARRAY model (STRING);
    OPTIONAL BYTE_ARRAY request (STRING);
    OPTIONAL BYTE_ARRAY response (STRING);
    REQUIRED BOOLEAN research_enabled;
    OPTIONAL BYTE_ARRAY r_type (STRING);
    REQUIRED INT64 tokens_used;
    REQUIRED INT64 processing_time_ms;
    OPTIONAL BYTE_ARRAY ip_address (STRING);
    REQUIRED INT64 timestamp (TIMESTAMP(MILLIS,true));
    REQUIRED INT64 input_tokens;
    REQUIRED INT64 output_tokens;
    REQUIRED BYTE_ARRAY route (STRING);
    OPTIONAL BYTE_ARRAY request_id (STRING);
    REQUIRED INT64 status;
    REQUIRED BOOLEAN truncated;
    REQUIRED BYTE_ARRAY outcome (STRING);
}";

/// A record as the journal keeps it.
#[derive(Deserialize)]
struct Row<'a> {
    id: u64,
    user_id: u64,
    #[serde(borrow, default)]
    username: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    email: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    messages: Messages<'a>,
    research_enabled: bool,
    #[serde(borrow, default)]
    r_type: Option<Cow<'a, str>>,
    tokens_used: u64,
    processing_time_ms: u64,
    #[serde(borrow, default)]
    ip_address: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    input_tokens: u64,
    output_tokens: u64,
    #[serde(borrow)]
    route: Cow<'a, str>,
    #[serde(borrow, default)]
    request_id: Option<Cow<'a, str>>,
    status: u64,
    truncated: bool,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Messages<'a> {
    #[serde(borrow, default)]
    request: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Response<'a>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
}

/// One column's part of the group that is being filled.
enum Column {
    Numbers(Vec<i64>),
    Flags(Vec<bool>),
    Texts(Vec<ByteArray>),
    /// The texts that are there, and for each row whether there is one.
    OptionalTexts(Vec<ByteArray>, Vec<i16>),
}

impl Column {
    /// Empty columns in the order of the schema.
    fn all() -> Vec<Self> {
        let (numbers, flags) = (|| Self::Numbers(Vec::new()), || Self::Flags(Vec::new()));
        let (texts, optional) = (|| Self::Texts(Vec::new()), || Self::OptionalTexts(Vec::new(), Vec::new()));
        vec![
            numbers(),  // id
            numbers(),  // user_id
            optional(), // username
            optional(), // email
            texts(),    // model
            optional(), // request
            optional(), // response
            flags(),    // research_enabled
            optional(), // r_type
            numbers(),  // tokens_used
            numbers(),  // processing_time_ms
            optional(), // ip_address
            numbers(),  // timestamp
            numbers(),  // input_tokens
            numbers(),  // output_tokens
            texts(),    // route
            optional(), // request_id
            numbers(),  // status
            flags(),    // truncated
            texts(),    // outcome
        ]
    }

    /// Says how many bytes the value takes.
    fn push(&mut self, value: Value<'_>) -> io::Result<usize> {
        match (self, value) {
            (Self::Numbers(column), Value::Number(number)) => column.push(i64::try_from(number).unwrap_or(i64::MAX)),
            (Self::Flags(column), Value::Flag(flag)) => column.push(flag),
            (Self::Texts(column), Value::Text(Some(text))) => {
                column.push(ByteArray::from(text.as_bytes().to_vec()));
                return Ok(text.len());
            }
            (Self::OptionalTexts(column, levels), Value::Text(text)) => {
                levels.push(i16::from(text.is_some()));
                column.extend(text.map(|text| ByteArray::from(text.as_bytes().to_vec())));
                return Ok(text.map_or(0, str::len));
            }
            _ => return Err(io::Error::other("a value does not fit its column")),
        }
        Ok(8)
    }

    fn write(&self, group: &mut SerializedRowGroupWriter<'_, File>) -> Result<(), ParquetError> {
        let Some(mut column) = group.next_column()? else {
            return Err(ParquetError::General("the schema has fewer columns".into()));
        };
        match self {
            Self::Numbers(values) => column.typed::<Int64Type>().write_batch(values, None, None)?,
            Self::Flags(values) => column.typed::<BoolType>().write_batch(values, None, None)?,
            Self::Texts(values) => column.typed::<ByteArrayType>().write_batch(values, None, None)?,
            Self::OptionalTexts(values, levels) => {
                column.typed::<ByteArrayType>().write_batch(values, Some(levels), None)?
            }
        };
        column.close()
    }
}

/// A value on its way into its column.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Flag(bool),
    Text(Option<&'a str>),
}

impl Row<'_> {
    fn values(&self) -> [Value<'_>; 20] {
        use Value::{Flag, Number, Text};
        [
            Number(self.id),
            Number(self.user_id),
            Text(self.username.as_deref()),
            Text(self.email.as_deref()),
            Text(Some(&self.model)),
            Text(self.messages.request.map(RawValue::get)),
            Text(self.messages.response.content.as_deref()),
            Flag(self.research_enabled),
            Text(self.r_type.as_deref()),
            Number(self.tokens_used),
            Number(self.processing_time_ms),
            Text(self.ip_address.as_deref()),
            Number(UnixMillis::parse_rfc3339(&self.timestamp).map_or(0, |time| time.0)),
            Number(self.input_tokens),
            Number(self.output_tokens),
            Text(Some(&self.route)),
            Text(self.request_id.as_deref()),
            Number(self.status),
            Flag(self.truncated),
            Text(Some(&self.outcome)),
        ]
    }
}

/// A Parquet file being written, one row group after the other.
pub(super) struct RowGroups {
    writer: SerializedFileWriter<File>,
    columns: Vec<Column>,
    rows: usize,
    bytes: usize,
}

impl RowGroups {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let schema = parse_message_type(SCHEMA).map_err(io::Error::other)?;
        let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(io::Error::other)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by(concat!("tollgate ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties));
        Ok(Self { writer: writer.map_err(io::Error::other)?, columns: Column::all(), rows: 0, bytes: 0 })
    }

    /// Adds one record, by its JSON.
    pub(super) fn add(&mut self, json: &[u8]) -> io::Result<()> {
        let row: Row<'_> = serde_json::from_slice(json)?;
        for (column, value) in self.columns.iter_mut().zip(row.values()) {
            self.bytes += column.push(value)?;
        }
        self.rows += 1;
        if self.rows >= GROUP_ROWS || self.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> io::Result<()> {
        let write = |writer: &mut SerializedFileWriter<File>| {
            let mut group = writer.next_row_group()?;
            for column in &self.columns {
                column.write(&mut group)?;
            }
            group.close().map(drop)
        };
        write(&mut self.writer).map_err(io::Error::other)?;
        (self.columns, self.rows, self.bytes) = (Column::all(), 0, 0);
        Ok(())
    }

    /// Writes what is left, and the file's end.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.rows > 0 {
            self.write_group()?;
        }
        self.writer.close().map(drop).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    fn record(id: u64, text: &str) -> String {
        serde_json::json!({
            "id": id, "user_id": 7, "username": null, "email": "a@b.io", "model": "gpt-4o",
            "messages": {"request": [{"content": text}], "response": {"role": "assistant", "content": text}},
            "research_enabled": false, "r_type": null, "tokens_used": 25, "processing_time_ms": 1500,
            "ip_address": "10.0.0.1", "timestamp": "2024-01-15T12:00:00Z", "input_tokens": 5, "output_tokens": 20,
            "route": "/v1/*", "request_id": "req_1", "status": 200, "truncated": true, "outcome": "ok", "spilled": 4,
        })
        .to_string()
    }

    #[test]
    fn rows_come_back_in_bounded_groups() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut groups = RowGroups::new(file.reopen().unwrap()).unwrap();
        let (small, large) = ("zwölf \"é\"\n", "x".repeat(3 << 20));
        for id in 0..20 {
            groups.add(record(id, if id % 2 == 0 { small } else { &large }).as_bytes()).unwrap();
        }
        groups.finish().unwrap();
        let reader = SerializedFileReader::new(file.reopen().unwrap()).unwrap();
        let sizes: Vec<i64> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(sizes, [12, 8], "6 texts of 3 MiB, twice each, are over the bound");
        for (id, row) in reader.get_row_iter(None).unwrap().enumerate() {
            let fields: Vec<(String, Field)> = row.unwrap().into_columns().into_iter().collect();
            let field = |name: &str| fields.iter().find(|(own, _)| own == name).unwrap().1.clone();
            assert_eq!((field("id"), field("username")), (Field::Long(id as i64), Field::Null));
            assert_eq!(field("timestamp"), Field::TimestampMillis(1_705_320_000_000));
            let text = if id % 2 == 0 { small } else { &large };
            assert_eq!(field("response"), Field::Str(text.to_owned()));
            assert_eq!(field("truncated"), Field::Bool(true));
        }
    }

    #[test]
    fn a_file_without_rows_is_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        RowGroups::new(file.reopen().unwrap()).unwrap().finish().unwrap();
        let reader = SerializedFileReader::new(file.reopen().unwrap()).unwrap();
        assert_eq!((reader.metadata().file_metadata().num_rows(), reader.num_row_groups()), (0, 0));
    }
}
