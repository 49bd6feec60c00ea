//! The tensors of a Hugging Face directory: one `model.safetensors`, or shards and their index. Headers are read and
//! checked once; weights are read tensor by tensor, never more than was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::error::ConvertError;
use super::json::{self, Json};
use crate::gguf::grouped;
use crate::os::FileMap;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a directory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    directory: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

/// One tensor.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    shard: usize,
    /// Storage type.
    pub(crate) dtype: Dtype,
    /// Slowest first, as PyTorch says it.
    pub(crate) shape: Vec<usize>,
    /// From the start of the shard, in bytes.
    offset: u64,
    /// Length in bytes.
    pub(crate) bytes: usize,
}

impl Checkpoint {
    /// Reads the headers of all shards.
    ///
    /// # Errors
    /// When a shard is missing or damaged, or a tensor of the index isn't where the index says.
    pub(crate) fn open(directory: &Path) -> Result<Checkpoint, ConvertError> {
        let index = directory.join(INDEX);
        let indexed = match index.exists() {
            true => Some(weight_map(&index)?),
            false => None,
        };
        let names = match &indexed {
            Some(map) => map.values().cloned().collect::<BTreeSet<_>>(),
            None => shard_names(directory)?,
        };
        let mut checkpoint = Checkpoint {
            directory: directory.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for name in names {
            checkpoint.add(&directory.join(name))?;
        }
        let missing = indexed
            .iter()
            .flatten()
            .find(|(name, _)| !checkpoint.tensors.contains_key(*name));
        match missing {
            None => Ok(checkpoint),
            Some((name, shard)) => Err(ConvertError::tensor(
                &directory.join(shard),
                name,
                format!("missing, although `{INDEX}` says it is there"),
            )),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), ConvertError> {
        let failed = ConvertError::read(path);
        let opened = FileMap::open(path).and_then(|map| Ok((File::open(path)?, map.bytes())));
        let (file, bytes) = opened.map_err(failed)?;
        let damaged = |reason: String| ConvertError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let (header_bytes, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| damaged(header_error(&bytes, &error)))?;
        let data_start = 8 + header_bytes as u64;
        let shard = self.shards.len();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                shard,
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: data_start + start as u64,
                bytes: end - start,
            };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let first = self.shards[other.shard].path.display().to_string();
                let reason = format!("tensor `{name}` is in `{first}`, too");
                return Err(damaged(reason));
            }
        }
        self.shards.push(Shard {
            path: path.to_owned(),
            file,
        });
        Ok(())
    }

    /// Every name.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by name.
    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// The shard a tensor lies in; the directory for one that isn't there.
    pub(crate) fn path_of(&self, name: &str) -> &Path {
        self.get(name)
            .map_or(&*self.directory, |entry| &self.shards[entry.shard].path)
    }

    /// A tensor that must be there with this shape.
    ///
    /// # Errors
    /// When it isn't.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<&Entry, ConvertError> {
        let wrong = |reason: String| ConvertError::tensor(self.path_of(name), name, reason);
        let entry = self.get(name).ok_or_else(|| wrong("missing".to_owned()))?;
        if entry.shape != shape {
            let found = &entry.shape;
            return Err(wrong(format!("the shape {found:?}, expected {shape:?}")));
        }
        Ok(entry)
    }

    /// Bytes `from..from + out.len()` of a tensor.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn read(&self, name: &str, from: usize, out: &mut [u8]) -> Result<(), ConvertError> {
        let entry = &self.tensors[name];
        assert!(from + out.len() <= entry.bytes, "a part of the tensor");
        let shard = &self.shards[entry.shard];
        let read = shard.file.read_exact_at(out, entry.offset + from as u64);
        read.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => ConvertError::Damaged {
                path: shard.path.clone(),
                reason: format!("it ends inside tensor `{name}`"),
            },
            _ => ConvertError::Read {
                path: shard.path.clone(),
                source,
            },
        })
    }
}

/// `weight_map` of the index: tensor to shard.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>, ConvertError> {
    let index = Json::read(path)?;
    let map = index.value("weight_map").and_then(|map| map.as_object());
    let wrong = |found: &str| ConvertError::Key {
        path: path.to_owned(),
        key: "weight_map".to_owned(),
        found: found.to_owned(),
        expected: "tensor names and the names of files beside the index".to_owned(),
    };
    let map = map.ok_or_else(|| wrong("missing or no object"))?;
    let shard = |(name, shard): (&String, &serde_json::Value)| {
        let shard = shard.as_str().filter(|shard| is_file_name(shard));
        let shard = shard.ok_or_else(|| wrong(&format!("a path outside, for `{name}`")))?;
        Ok((name.clone(), shard.to_owned()))
    };
    map.iter().map(shard).collect()
}

fn is_file_name(text: &str) -> bool {
    Path::new(text).file_name().is_some_and(|name| name == text)
}

/// The one file, or all safetensors there are.
fn shard_names(directory: &Path) -> Result<BTreeSet<String>, ConvertError> {
    if directory.join(SINGLE).exists() {
        return Ok([SINGLE.to_owned()].into());
    }
    let mut names = BTreeSet::new();
    let entries = std::fs::read_dir(directory).map_err(ConvertError::read(directory))?;
    for entry in entries {
        let entry = entry.map_err(ConvertError::read(directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.insert(name);
        }
    }
    let numbered = |name: &String| name.contains("-of-");
    if names.iter().any(numbered) {
        // Without the index nobody knows whether all are there, except by their numbers.
        return all_numbers(directory, names);
    }
    if names.is_empty() {
        let pickles = json::exists(directory, "pytorch_model.bin")
            || json::exists(directory, "pytorch_model.bin.index.json");
        let reason = match pickles {
            true => "it holds PyTorch pickles only, expected *.safetensors",
            false => "it holds no *.safetensors",
        };
        return Err(ConvertError::file(directory, reason));
    }
    Ok(names)
}

/// `model-00001-of-00003.safetensors`: all three.
fn all_numbers(
    directory: &Path,
    names: BTreeSet<String>,
) -> Result<BTreeSet<String>, ConvertError> {
    let count = |name: &String| {
        let (_, rest) = name.split_once("-of-")?;
        rest.strip_suffix(".safetensors")?.parse::<usize>().ok()
    };
    let announced = names.iter().find_map(count).unwrap_or(0);
    if announced == names.len() {
        return Ok(names);
    }
    let reason = format!(
        "it holds {} of {announced} shards and no `{INDEX}`",
        names.len()
    );
    Err(ConvertError::file(directory, reason))
}

/// In words, with the numbers where the file is too short.
fn header_error(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError as E;
    let length = bytes
        .first_chunk::<8>()
        .map(|word| u64::from_le_bytes(*word));
    match (error, length) {
        (E::HeaderTooSmall, _) => format!("it has {} bytes, no header", bytes.len()),
        (E::InvalidHeaderLength | E::HeaderTooLarge, Some(length)) => format!(
            "its header is said to have {} bytes, the file has {}",
            grouped(length),
            grouped(bytes.len() as u64)
        ),
        (E::MetadataIncompleteBuffer, Some(_)) => format!(
            "its tensors end elsewhere than the file, which has {} bytes",
            grouped(bytes.len() as u64)
        ),
        _ => error.to_string(),
    }
}
