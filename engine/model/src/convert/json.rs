//! JSON files of a Hugging Face directory; every complaint names the file and the key.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::ConvertError;
use crate::os::require_file;

/// Largest JSON file read, in bytes; a tokenizer.json of 260,000 tokens has 35 MB.
const MOST_BYTES: u64 = 256 << 20;

/// A file with one JSON object.
#[derive(Debug)]
pub(crate) struct Json {
    path: PathBuf,
    object: Value,
}

/// The elements of a file that holds one JSON list.
///
/// # Errors
/// When it can't be read or holds none.
pub(crate) fn list(path: &Path) -> Result<Vec<Value>, ConvertError> {
    match read(path)? {
        Value::Array(list) => Ok(list),
        _ => Err(ConvertError::Damaged {
            path: path.to_owned(),
            reason: "it holds no JSON list".to_owned(),
        }),
    }
}

fn read(path: &Path) -> Result<Value, ConvertError> {
    let failed = || ConvertError::read(path);
    require_file(path).map_err(failed())?;
    let bytes = std::fs::metadata(path).map_err(failed())?.len();
    if bytes > MOST_BYTES {
        let reason = format!("{bytes} bytes, expected at most {MOST_BYTES}");
        return Err(ConvertError::file(path, reason));
    }
    let text = std::fs::read(path).map_err(failed())?;
    serde_json::from_slice(&text).map_err(|error| ConvertError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// Whether a file is there.
pub(crate) fn exists(directory: &Path, name: &str) -> bool {
    directory.join(name).exists()
}

impl Json {
    /// Reads the file.
    ///
    /// # Errors
    /// When it can't be read or holds no JSON object.
    pub(crate) fn read(path: &Path) -> Result<Json, ConvertError> {
        let object = read(path)?;
        if !object.is_object() {
            return Err(ConvertError::Damaged {
                path: path.to_owned(),
                reason: "it holds no JSON object".to_owned(),
            });
        }
        Ok(Json {
            path: path.to_owned(),
            object,
        })
    }

    /// Reads `name` in `directory` if it is there.
    ///
    /// # Errors
    /// As [`Json::read`].
    pub(crate) fn find(directory: &Path, name: &str) -> Result<Option<Json>, ConvertError> {
        let path = directory.join(name);
        match path.exists() {
            true => Json::read(&path).map(Some),
            false => Ok(None),
        }
    }

    /// Where it was read.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    pub(crate) fn whole(&self) -> &Value {
        &self.object
    }

    /// A value by its keys, `.` between them; null counts as absent.
    pub(crate) fn value(&self, keys: &str) -> Option<&Value> {
        let found = keys
            .split('.')
            .try_fold(&self.object, |value, key| value.get(key))?;
        (!found.is_null()).then_some(found)
    }

    /// A complaint about a key.
    pub(crate) fn wrong(&self, key: &str, expected: &str) -> ConvertError {
        let found = match self.value(key) {
            None => "missing".to_owned(),
            Some(value) => short(value),
        };
        ConvertError::Key {
            path: self.path.clone(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        }
    }

    /// A string; `None` without the key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    /// A truth value; `None` without the key, or for anything else.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key).and_then(Value::as_bool)
    }

    /// A truth value; `None` without the key.
    ///
    /// # Errors
    /// When something else is there.
    pub(crate) fn truth(&self, key: &str) -> Result<Option<bool>, ConvertError> {
        let truth = |value: &Value| {
            let wrong = || self.wrong(key, "`true` or `false`");
            value.as_bool().ok_or_else(wrong)
        };
        self.value(key).map(truth).transpose()
    }

    /// A whole number from 1 to 2^24; `None` without the key.
    ///
    /// # Errors
    /// When something else is there.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, ConvertError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let count = value.as_u64().filter(|n| (1..=1 << 24).contains(n));
        let count = count.ok_or_else(|| self.wrong(key, "a whole number from 1 to 16,777,216"))?;
        Ok(Some(count as usize))
    }

    /// A whole number from 1 to 2^24.
    ///
    /// # Errors
    /// When it is missing or something else is there.
    pub(crate) fn required(&self, key: &str) -> Result<usize, ConvertError> {
        self.count(key)?
            .ok_or_else(|| self.wrong(key, "a whole number from 1 to 16,777,216"))
    }

    /// A number; `None` without the key.
    ///
    /// # Errors
    /// When something else is there.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f32>, ConvertError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = value.as_f64().ok_or_else(|| self.wrong(key, "a number"))?;
        Ok(Some(number as f32))
    }
}

/// A value for a message: its beginning.
pub(crate) fn short(value: &Value) -> String {
    const MOST: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}
