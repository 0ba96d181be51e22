//! JSON files of a checkpoint: read whole, and fields taken with errors that name the file and the key.

use std::path::Path;

use mmada::{Error, Result};
use serde_json::{Map, Value};

/// One JSON object and the name of the file it came from.
#[derive(Clone, Debug)]
pub struct Object {
    map: Map<String, Value>,
    file: String,
    /// Where in the file this object stands: empty for the file's own object, else `key.` prefixes.
    prefix: String,
}

impl Object {
    /// The object that `path` holds. A missing file is an `Io` error.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let text = read_text(path)?;
        Self::parse(&text, &file)
    }

    /// As `read`; `None` where the file does not exist.
    pub fn read_if_present(path: &Path) -> Result<Option<Self>> {
        match path.try_exists() {
            Ok(false) => Ok(None),
            Ok(true) => Self::read(path).map(Some),
            Err(e) => Err(Error::io(path.display(), e)),
        }
    }

    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::format(file, format!("not valid JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Object { map, file: file.to_owned(), prefix: String::new() }),
            other => Err(Error::format(file, format!("expected a JSON object, found {}", kind(&other)))),
        }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A `Format` error about `key`.
    pub fn wrong(&self, key: &str, reason: impl std::fmt::Display) -> Error {
        Error::format(&self.file, format!("{}{key} {reason}", self.prefix))
    }

    fn typed<T>(&self, key: &str, expected: &str, take: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|v| take(v).ok_or_else(|| self.wrong(key, format!("is {}, expected {expected}", brief(v)))))
            .transpose()
    }

    /// A count that fits 32 bits, as every size in a model file does.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a whole number below 2^32", |v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    /// A finite number.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(self.wrong(key, format!("is {}, expected a string", brief(v)))),
        }
    }

    pub fn object(&self, key: &str) -> Result<Option<Object>> {
        let map = self.typed(key, "an object", |v| v.as_object().cloned())?;
        Ok(map.map(|map| Object { map, file: self.file.clone(), prefix: format!("{}{key}.", self.prefix) }))
    }

    /// The value, or an error that says that `key` is missing.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.wrong(key, "is missing"))
    }
}

/// The text of a file, an error if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path.display(), e))?;
    String::from_utf8(bytes).map_err(|_| Error::format(path.display(), "not a UTF-8 text file"))
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Scalars as they are written, long values by their kind.
pub fn brief(v: &Value) -> String {
    match v {
        Value::Array(_) | Value::Object(_) => kind(v).to_owned(),
        Value::String(s) if s.len() > 60 => kind(v).to_owned(),
        scalar => scalar.to_string(),
    }
}
