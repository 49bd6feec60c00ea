//! Writes a planned file: into a temporary file beside its place, read back and compared, then renamed. On any error the
//! directory is as it was.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bitnet_kernels::{SharedBytes, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::error::ConvertError;
use super::from_hf::Linear;
use super::packings::{I2sLayout, Trits};
use super::{Origin, Plan, Planned, Source, exact_scale, master};
use crate::gguf::{Gguf, TensorType};
use crate::synth::header::ALIGNMENT;

/// Bytes of floats converted at a time; a multiple of every value's and block's size.
const CHUNK_BYTES: usize = 1 << 20;

/// Who hears of the progress, and may end it.
pub struct Watch<'a> {
    /// Called with the bytes done and the bytes in all.
    pub progress: &'a mut dyn FnMut(Phase, u64, u64),
    /// Once it says yes, the conversion ends with [`ConvertError::Cancelled`].
    pub cancelled: &'a dyn Fn() -> bool,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The new file is written.
    Writing,
    /// It is read back and compared.
    Comparing,
}

impl Watch<'_> {
    fn step(&mut self, phase: Phase, done: u64, all: u64) -> Result<(), ConvertError> {
        if (self.cancelled)() {
            return Err(ConvertError::Cancelled);
        }
        (self.progress)(phase, done, all);
        Ok(())
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// SHA-256 of all ternary weights of the source, whatever their packing: of name and digest of each tensor, ordered by
    /// name.
    pub before: String,
    /// The same, of the new file as it was read back.
    pub after: String,
    /// Ternary weights.
    pub weights: u64,
    /// Those that are zero.
    pub zeros: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the source that were read.
    pub read_bytes: u64,
}

/// What must be the same after a conversion.
struct Fingerprint {
    digest: [u8; 32],
    scale: f32,
}

impl Plan {
    /// Makes the file `path`; one that is there already is replaced at the end, at once.
    ///
    /// # Errors
    /// When the source can't be read, isn't what its header says, or the target can't be written.
    pub fn write(&self, path: &Path, watch: &mut Watch<'_>) -> Result<Summary, ConvertError> {
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let path = path.to_owned();
            return Err(ConvertError::NoFile { path });
        }
        let failed = |source| ConvertError::Write {
            path: path.to_owned(),
            source,
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = path.file_name().ok_or_else(|| ConvertError::NoFile {
            path: path.to_owned(),
        })?;
        let part = tempfile::Builder::new()
            .prefix(&format!(".{}.", name.to_string_lossy()))
            .suffix(".part")
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(&directory)
            .map_err(failed)?;
        let job = Job {
            plan: self,
            path,
            out: BufWriter::with_capacity(CHUNK_BYTES, part.as_file()),
            done: 0,
            total: self.output_bytes(),
            read_bytes: 0,
            raw: Vec::new(),
            packed: Vec::new(),
            weights: 0,
            zeros: 0,
            watch,
        };
        let (before, read_bytes, weights, zeros) = job.run()?;
        let after = self.compare(part.path(), &before, watch)?;
        part.as_file().sync_all().map_err(failed)?;
        let bytes = part.as_file().metadata().map_err(failed)?.len();
        part.persist(path).map_err(|error| failed(error.error))?;
        // The file's name is safe only when its directory is; a system that can't do this loses nothing else.
        let _ = File::open(&directory).and_then(|directory| directory.sync_all());
        let names = self.ternary().map(|tensor| tensor.name.clone());
        Ok(Summary {
            before: digest_of_all(names.zip(before.iter().map(|f| f.digest)).collect()),
            after,
            weights,
            zeros,
            bytes,
            read_bytes,
        })
    }

    /// Reads the new file's ternary tensors and compares them with the source's; the common digest.
    fn compare(
        &self,
        part: &Path,
        before: &[Fingerprint],
        watch: &mut Watch<'_>,
    ) -> Result<String, ConvertError> {
        let gguf = Gguf::open(part).map_err(|source| ConvertError::Gguf {
            path: part.to_owned(),
            source,
        })?;
        let mut fingerprints = before.iter();
        let all = self.n_ternary() as u64;
        let mut after = Vec::new();
        for planned in self.ternary() {
            watch.step(Phase::Comparing, after.len() as u64, all)?;
            let expected = fingerprints.next().expect("one per ternary tensor");
            let changed = |what: String| ConvertError::Changed {
                name: planned.name.clone(),
                what,
            };
            let info = gguf.tensor(&planned.name);
            let info = info.ok_or_else(|| changed("it is gone".to_owned()))?;
            let exact = exact_scale(&gguf, &planned.name);
            let shape = (info.rows() as usize, info.cols() as usize);
            let layout = I2sLayout::Blocks128;
            let data = gguf.data(info);
            let hashed = match info.ty {
                TensorType::I2S => Trits::digest_of_i2_s(&data, shape),
                _ => None,
            };
            let (digest, scale) = match hashed {
                Some(found) => found,
                None => Trits::unpack(info.ty, &data, shape, layout, planned.tiles, exact)
                    .map(|trits| (trits.digest(), trits.scale))
                    .map_err(|error| changed(error.to_string()))?,
            };
            release(&gguf, &data);
            if digest != expected.digest {
                let (before, after) = (hex(&expected.digest), hex(&digest));
                return Err(changed(format!("checksum {before} before, {after} after")));
            }
            if scale.to_bits() != expected.scale.to_bits() {
                let (before, after) = (expected.scale, scale);
                return Err(changed(format!("scale {before} before, {after} after")));
            }
            after.push((planned.name.clone(), digest));
        }
        watch.step(Phase::Comparing, all, all)?;
        Ok(digest_of_all(after))
    }
}

/// Gives back the pages of a tensor that was read, so that no more than one is in memory.
fn release(gguf: &Gguf, data: &SharedBytes) {
    if let Some(map) = gguf.map() {
        map.release(data);
    }
}

/// Of name and digest of each tensor, ordered by name.
pub(crate) fn digest_of_all(mut tensors: Vec<(String, [u8; 32])>) -> String {
    tensors.sort();
    let mut hash = Sha256::new();
    for (name, digest) in tensors {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(digest);
    }
    hex(&hash.finalize())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file being written.
struct Job<'a, 'w, 'c> {
    plan: &'a Plan,
    path: &'a Path,
    out: BufWriter<&'a File>,
    done: u64,
    total: u64,
    read_bytes: u64,
    /// A tensor as the source has it.
    raw: Vec<u8>,
    /// And as the new file will.
    packed: Vec<u8>,
    weights: u64,
    zeros: u64,
    watch: &'w mut Watch<'c>,
}

impl Job<'_, '_, '_> {
    fn run(mut self) -> Result<(Vec<Fingerprint>, u64, u64, u64), ConvertError> {
        let plan = self.plan;
        let header = plan.header(&vec![0.0; plan.n_ternary()]).bytes();
        self.put(&header)?;
        let mut before = Vec::new();
        for planned in &plan.tensors {
            before.extend(self.tensor(planned)?);
            let padding = self.done.next_multiple_of(ALIGNMENT) - self.done;
            self.put(&vec![0; padding as usize])?;
        }
        let scales: Vec<f32> = before.iter().map(|tensor| tensor.scale).collect();
        let header = plan.header(&scales).bytes();
        let rewound = self.out.seek(SeekFrom::Start(0)).map(drop);
        let written = rewound
            .and_then(|()| self.out.write_all(&header))
            .and_then(|()| self.out.flush());
        written.map_err(|source| self.failed(source))?;
        Ok((before, self.read_bytes, self.weights, self.zeros))
    }

    fn failed(&self, source: std::io::Error) -> ConvertError {
        ConvertError::Write {
            path: self.path.to_owned(),
            source,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        let written = self.out.write_all(bytes);
        written.map_err(|source| self.failed(source))?;
        self.done += bytes.len() as u64;
        self.watch.step(Phase::Writing, self.done, self.total)
    }

    fn tensor(&mut self, planned: &Planned) -> Result<Option<Fingerprint>, ConvertError> {
        match (&self.plan.source, &planned.origin) {
            (Source::HuggingFace(checkpoint), Origin::Linear(linear)) => {
                let trits = self.linear(checkpoint, linear)?;
                let path = checkpoint.path_of(&linear.name);
                self.ternary(planned, &trits, path, &linear.name).map(Some)
            }
            (
                Source::HuggingFace(checkpoint),
                Origin::Floats {
                    name,
                    heads,
                    plus_one,
                },
            ) => {
                let entry = checkpoint.get(name).expect("it was planned from");
                let convert = Floats {
                    add: f32::from(u8::from(*plus_one)),
                    ..Floats::new(entry.dtype, planned.ty)
                };
                self.floats(checkpoint, name, *heads, &convert)?;
                Ok(None)
            }
            (Source::Gguf(path, gguf), Origin::Ternary { tiles }) => {
                let info = gguf.tensor(&planned.name).expect("it was planned from");
                let shape = (info.rows() as usize, info.cols() as usize);
                let exact = exact_scale(gguf, &planned.name);
                let data = gguf.data(info);
                self.read_bytes += data.len() as u64;
                let trits = Trits::unpack(info.ty, &data, shape, self.plan.layout, *tiles, exact)
                    .map_err(|error| ConvertError::tensor(path, &planned.name, error))?;
                release(gguf, &data);
                self.ternary(planned, &trits, path, &planned.name).map(Some)
            }
            (Source::Gguf(_, gguf), _) => {
                let info = gguf.tensor(&planned.name).expect("it was planned from");
                let data = gguf.data(info);
                self.read_bytes += data.len() as u64;
                for chunk in data.chunks(CHUNK_BYTES) {
                    self.put(chunk)?;
                }
                release(gguf, &data);
                Ok(None)
            }
            (Source::HuggingFace(_), _) => unreachable!("a checkpoint has linears and floats"),
        }
    }

    fn ternary(
        &mut self,
        planned: &Planned,
        trits: &Trits,
        path: &Path,
        name: &str,
    ) -> Result<Fingerprint, ConvertError> {
        let mut packed = std::mem::take(&mut self.packed);
        trits
            .pack(planned.ty, planned.tiles, &mut packed)
            .map_err(|error| ConvertError::tensor(path, name, error))?;
        self.put(&packed)?;
        self.packed = packed;
        self.weights += trits.weights.len() as u64;
        self.zeros += trits.zeros() as u64;
        Ok(Fingerprint {
            digest: trits.digest(),
            scale: trits.scale,
        })
    }

    fn linear(&mut self, checkpoint: &Checkpoint, linear: &Linear) -> Result<Trits, ConvertError> {
        let wrong = |error: master::MasterError| {
            ConvertError::tensor(checkpoint.path_of(&linear.name), &linear.name, error)
        };
        let entry = checkpoint.get(&linear.name).expect("it was planned from");
        self.raw.resize(entry.bytes, 0);
        checkpoint.read(&linear.name, 0, &mut self.raw)?;
        self.read_bytes += entry.bytes as u64;
        let shape = (linear.rows, linear.cols);
        let beside = match &linear.scale {
            None => 1.0,
            Some(name) => {
                let found = one_float(checkpoint, name)?;
                let scale = if linear.divides { 1.0 / found } else { found };
                if !scale.is_finite() || scale <= 0.0 {
                    let path = checkpoint.path_of(name);
                    let reason = format!("it is {found}, expected a finite number above 0");
                    return Err(ConvertError::tensor(path, name, reason));
                }
                scale
            }
        };
        let mut trits = match entry.dtype {
            Dtype::U8 => master::unpack(&self.raw, shape, beside).map_err(wrong)?,
            dtype => {
                let mut trits =
                    master::quantize(dtype, &self.raw, shape, linear.masters).map_err(wrong)?;
                trits.scale *= beside;
                trits
            }
        };
        if linear.heads > 0 {
            master::interleave(&mut trits.weights, linear.heads, linear.cols);
        }
        Ok(trits)
    }

    /// Floats as another type, in chunks; those whose rows move as a whole.
    fn floats(
        &mut self,
        checkpoint: &Checkpoint,
        name: &str,
        heads: usize,
        convert: &Floats,
    ) -> Result<(), ConvertError> {
        let entry = checkpoint.get(name).expect("it was planned from");
        let (dtype, bytes, ty) = (entry.dtype, entry.bytes, convert.to);
        let chunk = if heads > 0 { bytes } else { CHUNK_BYTES };
        let mut at = 0;
        while at < bytes {
            let len = chunk.min(bytes - at);
            self.raw.resize(len, 0);
            checkpoint.read(name, at, &mut self.raw)?;
            self.read_bytes += len as u64;
            if heads > 0 {
                match dtype {
                    Dtype::F32 => {
                        master::interleave(self.raw.as_chunks_mut::<4>().0, heads, 1);
                    }
                    _ => master::interleave(self.raw.as_chunks_mut::<2>().0, heads, 1),
                }
            }
            let mut packed = std::mem::take(&mut self.packed);
            packed.clear();
            if let Err((index, found)) = convert.append(&self.raw, &mut packed) {
                let value_bytes = dtype.bitsize() / 8;
                let reason = format!(
                    "{found} at index {}, which {ty} cannot hold",
                    at / value_bytes + index
                );
                return Err(ConvertError::tensor(checkpoint.path_of(name), name, reason));
            }
            self.put(&packed)?;
            self.packed = packed;
            at += len;
        }
        Ok(())
    }
}

fn one_float(checkpoint: &Checkpoint, name: &str) -> Result<f32, ConvertError> {
    let entry = checkpoint.get(name).expect("it was planned from");
    let mut raw = vec![0; entry.bytes];
    checkpoint.read(name, 0, &mut raw)?;
    let half = u16::from_le_bytes([raw[0], raw[1]]);
    Ok(match entry.dtype {
        Dtype::BF16 => bf16_to_f32(half),
        Dtype::F16 => f16_to_f32(half),
        _ => f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]),
    })
}

/// Turns floats of one type into another.
struct Floats {
    from: Dtype,
    to: TensorType,
    /// Added to each; other than 0 for F32 only.
    add: f32,
    /// For 16 bits to F16: every answer.
    halves: Vec<u16>,
}

/// Index and value of a number that the other type can't hold.
type Unheld = (usize, f32);

impl Floats {
    fn new(from: Dtype, to: TensorType) -> Floats {
        let halves = match (from, to) {
            (Dtype::BF16, TensorType::F16) => (0..=u16::MAX)
                .map(|bits| f32_to_f16(bf16_to_f32(bits)))
                .collect(),
            _ => Vec::new(),
        };
        let add = 0.0;
        Floats {
            from,
            to,
            add,
            halves,
        }
    }

    fn value(&self, bytes: &[u8]) -> f32 {
        match (self.from, bytes) {
            (Dtype::BF16, &[a, b]) => bf16_to_f32(u16::from_le_bytes([a, b])),
            (Dtype::F16, &[a, b]) => f16_to_f32(u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("values of two or four bytes"),
        }
    }

    fn append(&self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Unheld> {
        const F16_INFINITE: u16 = 0x7c00;
        if self.to == TensorType::Q8_0 {
            return self.append_q8_0(raw, out);
        }
        if !self.halves.is_empty() {
            let mut infinite = false;
            for bytes in raw.as_chunks::<2>().0 {
                let half = self.halves[usize::from(u16::from_le_bytes(*bytes))];
                infinite |= half & F16_INFINITE == F16_INFINITE;
                out.extend_from_slice(&half.to_le_bytes());
            }
            if !infinite {
                return Ok(());
            }
        }
        let value_bytes = self.from.bitsize() / 8;
        for (index, bytes) in raw.chunks_exact(value_bytes).enumerate() {
            let value = self.value(bytes) + self.add;
            let held = match self.to {
                TensorType::F16 => f16_to_f32(f32_to_f16(value)),
                TensorType::BF16 => bf16_to_f32(f32_to_bf16(value)),
                _ => value,
            };
            if !held.is_finite() {
                return Err((index, value));
            }
            match self.to {
                TensorType::F16 => out.extend_from_slice(&f32_to_f16(value).to_le_bytes()),
                TensorType::BF16 => out.extend_from_slice(&f32_to_bf16(value).to_le_bytes()),
                _ => out.extend_from_slice(&value.to_le_bytes()),
            }
        }
        Ok(())
    }

    /// Blocks of 32: d = max|x| / 127 as f16, then the values over d, rounded half away from zero.
    fn append_q8_0(&self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), Unheld> {
        let value_bytes = self.from.bitsize() / 8;
        for (number, block) in raw.chunks_exact(32 * value_bytes).enumerate() {
            let mut values = [0.0f32; 32];
            let parts = block.chunks_exact(value_bytes);
            for (value, bytes) in values.iter_mut().zip(parts) {
                *value = self.value(bytes);
            }
            let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let d = most / 127.0;
            let bad = values.iter().position(|x| !x.is_finite());
            if let Some(i) = bad.or((f32_to_f16(d) == 0x7c00).then_some(0)) {
                return Err((number * 32 + i, values[i]));
            }
            let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
            out.extend_from_slice(&f32_to_f16(d).to_le_bytes());
            out.extend(values.map(|x| (x * inverse).round() as i8 as u8));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_change_their_type() {
        let values = [1.0f32, -2.5, 0.0, 1.0 / 3.0];
        let bf16: Vec<u8> = values
            .iter()
            .flat_map(|x| f32_to_bf16(*x).to_le_bytes())
            .collect();
        let mut out = Vec::new();
        Floats::new(Dtype::BF16, TensorType::F16)
            .append(&bf16, &mut out)
            .unwrap();
        let third = bf16_to_f32(f32_to_bf16(1.0 / 3.0));
        let expected: Vec<u8> = [1.0, -2.5, 0.0, third]
            .iter()
            .flat_map(|x| f32_to_f16(*x).to_le_bytes())
            .collect();
        assert_eq!(out, expected);
        out.clear();
        Floats::new(Dtype::BF16, TensorType::BF16)
            .append(&bf16, &mut out)
            .unwrap();
        assert_eq!(out, bf16);
    }

    #[test]
    fn what_a_type_cannot_hold_is_named() {
        for (value, to) in [
            (1e6f32, TensorType::F16),
            (f32::NAN, TensorType::F32),
            (f32::INFINITY, TensorType::Q8_0),
        ] {
            let mut values = [0.5f32; 32];
            values[9] = value;
            let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let error = Floats::new(Dtype::F32, to).append(&raw, &mut Vec::new());
            assert_eq!(error.unwrap_err().0, 9, "{value} as {to}");
        }
        let raw: Vec<u8> = [f32_to_bf16(0.0), f32_to_bf16(7e4)]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let error = Floats::new(Dtype::BF16, TensorType::F16).append(&raw, &mut Vec::new());
        assert_eq!(error.unwrap_err().0, 1);
    }

    #[test]
    fn q8_0_blocks() {
        let values: Vec<f32> = (0..32).map(|i| (i as f32 - 16.0) / 8.0).collect();
        let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut out = Vec::new();
        Floats::new(Dtype::F32, TensorType::Q8_0)
            .append(&raw, &mut out)
            .unwrap();
        assert_eq!(out.len(), 34);
        let d = f16_to_f32(u16::from_le_bytes([out[0], out[1]]));
        for (value, code) in values.iter().zip(&out[2..]) {
            assert!((value - d * f32::from(*code as i8)).abs() < d, "{value}");
        }
    }
}
