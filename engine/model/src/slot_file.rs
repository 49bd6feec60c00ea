//! A slot's tokens, keys and values in a file, written and read one head at a time so that others need not wait.
//!
//! Layout, little-endian: `MAGIC`, u32 `VERSION`, u32 type of the cells, 32 bytes fingerprint of the model, u32 layers,
//! u32 key/value heads, u32 values per head, u32 tokens; the tokens as u32; for each layer and head the keys, then the
//! values of all tokens as the cache holds them; the SHA-256 of all before. A file is written beside its name and renamed
//! when complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::facts::ModelFacts;
use crate::gguf::Gguf;
use crate::kv::{KvCache, KvShape};
use crate::protocol::{KvType, SlotFault};

const MAGIC: [u8; 8] = *b"BNLSLOT\0";
const VERSION: u32 = 1;
/// Up to the tokens.
const HEADER_BYTES: usize = 64;
const HASH_BYTES: usize = 32;

/// Bytes at the begin and at the end of each tensor that tell its model from others.
const SAMPLE_BYTES: usize = 64;

/// Tells a model's keys and values from those of others.
pub type Fingerprint = [u8; 32];

/// SHA-256 of the graph, of all tensors' names, types and sizes, and of their first and last bytes.
pub fn fingerprint(gguf: &Gguf, facts: &ModelFacts) -> Fingerprint {
    let mut hash = Sha256::new();
    let graph = (
        facts.architecture,
        facts.activation,
        facts.rope,
        facts.norm_eps,
    );
    let heads = (facts.n_head, facts.n_head_kv, facts.head_dim);
    hash.update(format!("{graph:?} {heads:?}"));
    for tensor in gguf.tensors() {
        hash.update(format!("{} {} {:?}", tensor.name, tensor.ty, tensor.dims));
        let data = gguf.data(tensor);
        hash.update(&data[..SAMPLE_BYTES.min(data.len())]);
        hash.update(&data[data.len().saturating_sub(SAMPLE_BYTES)..]);
    }
    hash.finalize().into()
}

/// A file on its way.
pub struct Saving {
    slot: usize,
    path: PathBuf,
    part: PathBuf,
    file: File,
    hash: Sha256,
    buffer: Vec<u8>,
    n_tokens: usize,
    n_bytes: u64,
    /// Heads written, counted over layers.
    n_heads: usize,
    is_complete: bool,
}

impl Saving {
    /// Begins to write the content of `slot`, which must not change until the end.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn begin(
        path: &Path,
        slot: usize,
        kv: &KvCache,
        model: &Fingerprint,
    ) -> Result<Self, SlotFault> {
        let part = part_of(path);
        let file = File::create(&part).map_err(|error| failed("make", &part, &error))?;
        let mut saving = Saving {
            slot,
            path: path.to_owned(),
            part,
            file,
            hash: Sha256::new(),
            buffer: Vec::new(),
            n_tokens: kv.tokens(slot).len(),
            n_bytes: 0,
            n_heads: 0,
            is_complete: false,
        };
        saving
            .buffer
            .extend(header(kv.shape(), model, saving.n_tokens));
        let tokens = kv.tokens(slot).iter();
        saving
            .buffer
            .extend(tokens.flat_map(|token| token.to_le_bytes()));
        saving.write()?;
        Ok(saving)
    }

    /// Writes the next head; true when the file is complete and has its name.
    ///
    /// # Errors
    /// When it can't be written; the old file, if any, is as it was.
    pub fn advance(&mut self, kv: &KvCache) -> Result<bool, SlotFault> {
        let KvShape {
            n_layer, n_head_kv, ..
        } = *kv.shape();
        if self.n_heads < n_layer * n_head_kv {
            let (layer, head) = (self.n_heads / n_head_kv, self.n_heads % n_head_kv);
            kv.head(layer, self.slot, head, self.n_tokens)
                .write_to(&mut self.buffer);
            self.write()?;
            self.n_heads += 1;
            return Ok(false);
        }
        let hash = self.hash.finalize_reset();
        self.buffer.extend_from_slice(&hash);
        self.write()?;
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.part, &self.path))
            .map_err(|error| failed("write", &self.path, &error))?;
        self.is_complete = true;
        Ok(true)
    }

    fn write(&mut self) -> Result<(), SlotFault> {
        self.hash.update(&self.buffer);
        self.file
            .write_all(&self.buffer)
            .map_err(|error| failed("write", &self.path, &error))?;
        self.n_bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Tokens saved.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Bytes written.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if !self.is_complete {
            // Nothing more can be done about a file that can't be removed; the next save overwrites it.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// A file being read into a slot.
pub struct Restoring {
    slot: usize,
    path: PathBuf,
    file: File,
    hash: Sha256,
    buffer: Vec<u8>,
    tokens: Vec<u32>,
    n_bytes: u64,
    n_heads: usize,
}

impl Restoring {
    /// Opens the file, checks that it fits this model and slot, and empties the slot.
    ///
    /// # Errors
    /// When the file isn't there, is damaged or belongs elsewhere; then the slot is as it was.
    pub fn begin(
        path: &Path,
        slot: usize,
        kv: &mut KvCache,
        model: &Fingerprint,
    ) -> Result<Self, SlotFault> {
        let open = || {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (mut file, n_bytes) = open().map_err(|error| failed("read", path, &error))?;
        let mut found = [0; HEADER_BYTES];
        read(&mut file, &mut found, path, n_bytes, HEADER_BYTES as u64)?;
        let n_tokens = check_header(&found, kv.shape(), model, path)?;
        let expected = file_bytes(kv.shape(), n_tokens);
        if n_bytes != expected {
            return Err(wrong_length(path, n_bytes, expected));
        }
        let mut tokens = vec![0; n_tokens * 4];
        read(&mut file, &mut tokens, path, n_bytes, expected)?;
        let mut hash = Sha256::new();
        hash.update(found);
        hash.update(&tokens);
        let words = tokens.as_chunks::<4>().0.iter();
        kv.truncate(slot, 0);
        Ok(Restoring {
            slot,
            path: path.to_owned(),
            file,
            hash,
            buffer: Vec::new(),
            tokens: words.map(|word| u32::from_le_bytes(*word)).collect(),
            n_bytes,
            n_heads: 0,
        })
    }

    /// Reads the next head; true when all is there, checked, and the slot holds it.
    ///
    /// # Errors
    /// When it can't be read or is damaged; the slot stays empty.
    pub fn advance(&mut self, kv: &mut KvCache) -> Result<bool, SlotFault> {
        let KvShape {
            n_layer, n_head_kv, ..
        } = *kv.shape();
        if self.n_heads < n_layer * n_head_kv {
            let (layer, head) = (self.n_heads / n_head_kv, self.n_heads % n_head_kv);
            let n_pos = self.tokens.len();
            self.buffer.resize(kv.shape().head_bytes(n_pos), 0);
            read(
                &mut self.file,
                &mut self.buffer,
                &self.path,
                self.n_bytes,
                self.n_bytes,
            )?;
            self.hash.update(&self.buffer);
            kv.fill_head(layer, self.slot, head, n_pos, &self.buffer);
            self.n_heads += 1;
            return Ok(false);
        }
        let mut found = [0; HASH_BYTES];
        read(
            &mut self.file,
            &mut found,
            &self.path,
            self.n_bytes,
            self.n_bytes,
        )?;
        if self.hash.finalize_reset().as_slice() != found {
            let name = name(&self.path);
            return Err(SlotFault::Refused(format!(
                "`{name}` is damaged: its content does not have its checksum"
            )));
        }
        for &token in &self.tokens {
            kv.push(self.slot, token);
        }
        Ok(true)
    }

    /// Tokens in the file.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Length of the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

fn header(shape: &KvShape, model: &Fingerprint, n_tokens: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[16..48].copy_from_slice(model);
    let sizes = [shape.n_layer, shape.n_head_kv, shape.head_dim, n_tokens];
    let words = [(8, VERSION), (12, type_number(shape.kv_type))].into_iter();
    let sizes = (48..).step_by(4).zip(sizes.map(|size| size as u32));
    for (place, word) in words.chain(sizes) {
        header[place..place + 4].copy_from_slice(&word.to_le_bytes());
    }
    header
}

fn type_number(kv_type: KvType) -> u32 {
    match kv_type {
        KvType::F16 => 0,
        KvType::F32 => 1,
        KvType::Q8_0 => 2,
    }
}

/// The number of tokens, when the header is one of this model and cache.
fn check_header(
    found: &[u8; HEADER_BYTES],
    shape: &KvShape,
    model: &Fingerprint,
    path: &Path,
) -> Result<usize, SlotFault> {
    let word = |place: usize| {
        let bytes = [
            found[place],
            found[place + 1],
            found[place + 2],
            found[place + 3],
        ];
        u32::from_le_bytes(bytes)
    };
    let n_tokens = word(60) as usize;
    let name = name(path);
    let error = if found[..8] != MAGIC {
        format!("`{name}` is not a file of a saved slot")
    } else if word(8) != VERSION {
        format!("`{name}` has the version {}, expected {VERSION}", word(8))
    } else if found[16..48] != model[..] {
        format!("`{name}` was saved with another model")
    } else if word(12) != type_number(shape.kv_type) {
        format!(
            "`{name}` was saved with another type of KV cache, this one is {}",
            shape.kv_type.name()
        )
    } else if *found != header(shape, model, n_tokens) {
        format!("`{name}` is damaged: its sizes are not those of its model")
    } else if n_tokens > shape.context {
        format!(
            "`{name}` holds {n_tokens} tokens, a slot holds {}",
            shape.context
        )
    } else {
        return Ok(n_tokens);
    };
    Err(SlotFault::Refused(error))
}

fn file_bytes(shape: &KvShape, n_tokens: usize) -> u64 {
    let heads = shape.n_layer * shape.n_head_kv * shape.head_bytes(n_tokens);
    (HEADER_BYTES + n_tokens * 4 + heads + HASH_BYTES) as u64
}

fn read(
    file: &mut File,
    bytes: &mut [u8],
    path: &Path,
    length: u64,
    expected: u64,
) -> Result<(), SlotFault> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => wrong_length(path, length, expected),
        _ => failed("read", path, &error),
    })
}

fn wrong_length(path: &Path, found: u64, expected: u64) -> SlotFault {
    let name = name(path);
    SlotFault::Refused(format!(
        "`{name}` is damaged: it has {found} bytes, expected {expected}"
    ))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> SlotFault {
    let message = format!("cannot {what} `{}`: {error}", name(path));
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
            SlotFault::Refused(message)
        }
        _ => SlotFault::Failed(message),
    }
}

/// Clients see names, not where the server keeps its files.
fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Where the file is written until it is complete.
fn part_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".part");
    name.into()
}
