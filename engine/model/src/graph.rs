//! The forward pass: a batch of tokens from any number of sequences in, logits for the entries that want them out.
//!
//! The calling thread tells the story and hands each step to the pool; a step ends when all workers are done. Matrices are
//! cut by output rows, attention by (token, key/value head) or more finely, norms by token. Every number is computed by one expression
//! in one order whatever the cut, so the logits of a token do not depend on threads, on its neighbours in the batch, on
//! how a prompt was chunked, or on whether it was prompt or answer.
//!
//! Residual stream, norms, attention and logits are f32; the input of every ternary matrix is quantised to int8 per token,
//! once for q, k and v together and once for gate and up.

mod attention;
mod buffers;
mod step;

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use bitnet_kernels::Kernel;

pub use self::buffers::PREFILL_PART;
use self::buffers::{Buffers, Scratch, Shape};
use self::step::Step;
use crate::facts::ModelFacts;
use crate::kv::KvCache;
use crate::os::FileMap;
use crate::pool::Pool;
use crate::protocol::{HeadMode, TokenProbs};
use crate::relocate::Relocation;
use crate::sampler::{self, Logits, TokenSet, Want};
use crate::screening::{Again, Crew, Screening};
use crate::weights::Weights;

/// Entries whose logits are computed together to score a text.
const SCORED_AT_ONCE: usize = 16;

/// One token of a batch. It takes the next position of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Sequence.
    pub slot: usize,
    /// Token id, below the vocabulary's size.
    pub token: u32,
    /// Compute the logits of what follows it.
    pub wants_logits: bool,
}

/// Sizes that buffers are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most entries in a batch.
    pub batch: usize,
    /// Most entries of a batch that want logits.
    pub logits: usize,
    /// Most positions of a slot.
    pub context: usize,
    /// Batches of at most this many entries use the decode workers, longer ones all.
    pub decode_batch: usize,
    /// Workers of a decode step.
    pub decode_workers: usize,
}

/// Weights, threads and buffers: everything a forward pass needs but the cache.
pub struct Model {
    weights: Weights,
    shape: Shape,
    limits: Limits,
    kernel: Kernel,
    pool: Pool,
    buffers: Buffers,
    scratch: Vec<Mutex<Scratch>>,
    screening: Option<Screening>,
    relocation: Option<Relocation>,
    /// `[SCORED_AT_ONCE, n_embd]` and `[SCORED_AT_ONCE, n_vocab]`, once a text is scored.
    scored: (Vec<f32>, Vec<f32>),
    /// The file whose rows of embedding and head are given back from time to time.
    map: Option<FileMap>,
    /// Whether pages of them may have come in since they were given back: single rows are read without.
    has_mapped: bool,
    /// Rows that were read since.
    n_rows_read: usize,
}

/// Single rows of embedding and head, read without the whole, after which pages of the whole are given back.
const ROWS_TO_RELEASE: usize = 64;

impl Model {
    /// Makes the buffers. `pool` must belong to the thread that will call [`Model::forward`].
    pub fn new(
        facts: &ModelFacts,
        weights: Weights,
        kernel: Kernel,
        pool: Pool,
        limits: Limits,
    ) -> Self {
        let shape = Shape::new(facts, &weights, limits.context);
        let scratch = (0..pool.size()).map(|_| Mutex::new(Scratch::new(&shape, &limits)));
        Model {
            scratch: scratch.collect(),
            buffers: Buffers::new(&shape, &limits),
            weights,
            shape,
            limits,
            kernel,
            pool,
            screening: None,
            relocation: None,
            scored: Default::default(),
            map: None,
            has_mapped: true,
            n_rows_read: 0,
        }
    }

    /// Screens the head from the moment the copies are complete.
    pub fn set_screening(&mut self, screening: Option<Screening>) {
        self.screening = screening;
    }

    /// Moves the ternary matrices as [`Model::relocate`] is called.
    pub fn set_relocation(&mut self, relocation: Option<Relocation>) {
        self.relocation = relocation;
    }

    /// Reads single rows of embedding and head from the file of `map`, and gives their pages back when others than whole heads are read.
    pub fn set_map(&mut self, map: Option<FileMap>) {
        self.map = map;
    }

    /// Whether matrices are still to be moved.
    pub fn is_relocating(&self) -> bool {
        self.relocation.is_some()
    }

    /// Goes on moving matrices for about `time`, with all workers.
    pub fn relocate(&mut self, time: Duration) {
        if let Some(relocation) = &mut self.relocation
            && relocation.work(&mut self.weights, &mut self.pool, time)
        {
            self.relocation = None;
        }
    }

    /// All weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Copies of the head.
    pub fn screening(&self) -> Option<&Screening> {
        self.screening.as_ref()
    }

    /// Screens by another mode, if there are copies.
    pub fn set_head(&mut self, mode: HeadMode) {
        if let Some(screening) = &mut self.screening {
            screening.set_mode(mode);
        }
    }

    /// Whether copies of the head are still to be made.
    pub fn is_screening_unmade(&self) -> bool {
        self.screening().is_some_and(|it| !it.is_made())
    }

    /// Goes on making copies of the head for about `time`, with all workers.
    pub fn make_screening(&mut self, time: Duration) {
        if let Some(screening) = &mut self.screening {
            let mut crew = Crew {
                kernel: self.kernel,
                n_workers: self.pool.size(),
                pool: &mut self.pool,
                file: None,
            };
            self.has_mapped = true;
            screening.make(&mut crew, time);
        }
    }

    /// Tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.shape.n_vocab
    }

    /// Workers of a prefill step.
    pub fn n_workers(&self) -> usize {
        self.pool.size()
    }

    /// Sizes of the buffers.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Runs a batch: each entry is appended to its slot in `kv`. Returns `[n_wanted, n_vocab]` logits in the order of the
    /// entries that want them; the caller may change them. `tick` is called after every layer.
    ///
    /// # Panics
    /// When the batch is empty or breaks [`Limits`], a token is not in the vocabulary, or a slot is full.
    pub fn forward(&mut self, batch: &[Entry], kv: &mut KvCache, tick: impl FnMut()) -> &mut [f32] {
        let n_wanted = self.run(batch, &[], kv, tick);
        &mut self.buffers.logits[..n_wanted * self.shape.n_vocab]
    }

    /// The same, but with no more logits than `wants` says, one for each entry that wants logits; see [`Model::logits`].
    ///
    /// # Panics
    /// As [`Model::forward`], and when `wants` has another length.
    pub fn forward_for(
        &mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
        kv: &mut KvCache,
        tick: impl FnMut(),
    ) {
        let n_wanted = self.run(batch, wants, kv, tick);
        assert_eq!(
            wants.len(),
            n_wanted,
            "one want for each entry that wants logits"
        );
    }

    /// What the last pass computed, in the order of the entries that want logits. The caller may change them.
    pub fn logits(&mut self) -> impl Iterator<Item = Logits<'_>> {
        let Buffers {
            logits,
            is_screened,
            ..
        } = &mut self.buffers;
        let mut all = logits.chunks_exact_mut(self.shape.n_vocab).map(Logits::All);
        let mut best = self.screening.iter_mut().flat_map(Screening::found);
        is_screened.iter().map(move |is_screened| {
            let logits = match is_screened {
                true => best.next(),
                false => all.next(),
            };
            logits.expect("there are buffers for every entry that wants logits")
        })
    }

    /// The vector of one entry of the last batch behind the output norm; `out: [n_embd]`.
    ///
    /// # Panics
    /// When `out` has another length, or the buffers hold no such entry.
    pub fn hidden(&self, entry: usize, out: &mut [f32]) {
        let (kernel, n_embd) = (self.kernel, self.shape.n_embd);
        let row = &self.buffers.x[entry * n_embd..(entry + 1) * n_embd];
        kernel.rms_norm(row, &self.weights.output_norm, self.shape.eps, out);
    }

    /// How likely `next` are, each behind one of `entries` of the last batch, with the `n_top` likeliest; `None` where logits
    /// are not numbers. What [`Model::logits`] gives is left as it is.
    ///
    /// # Panics
    /// When there are not as many of both, or the buffers hold no such entries.
    pub fn score(
        &mut self,
        entries: Range<usize>,
        next: &[u32],
        n_top: usize,
    ) -> Option<Vec<TokenProbs>> {
        assert_eq!(entries.len(), next.len(), "one token behind each entry");
        let (n_embd, n_vocab) = (self.shape.n_embd, self.shape.n_vocab);
        self.has_mapped = true;
        let (inputs, logits) = &mut self.scored;
        inputs.resize(SCORED_AT_ONCE * n_embd, 0.0);
        logits.resize(SCORED_AT_ONCE * n_vocab, 0.0);
        let mut all = vec![None; next.len()];
        let rows = self.buffers.x[entries.start * n_embd..entries.end * n_embd]
            .chunks(SCORED_AT_ONCE * n_embd);
        let chunks = next.chunks(SCORED_AT_ONCE);
        for ((rows, next), out) in rows.zip(chunks).zip(all.chunks_mut(SCORED_AT_ONCE)) {
            let n = next.len();
            for (row, input) in rows.chunks(n_embd).zip(inputs.chunks_mut(n_embd)) {
                let norm = &self.weights.output_norm;
                self.kernel.rms_norm(row, norm, self.shape.eps, input);
            }
            let mut step = Step {
                kernel: self.kernel,
                shape: &self.shape,
                pool: &mut self.pool,
                scratch: &self.scratch,
                n_workers: self.limits.decode_workers,
                n_tokens: n,
                file: self.map.as_ref(),
            };
            let inputs: Vec<&[f32]> = inputs.chunks(n_embd).take(n).collect();
            let logits = &mut logits[..n * n_vocab];
            step.full_head(&self.weights.head, &inputs, logits);
            let found = logits.chunks(n_vocab).zip(next).zip(out);
            let n_workers = self.limits.decode_workers;
            self.pool
                .for_each(n_workers, found, |_, ((logits, &token), out)| {
                    *out = sampler::token_probs(logits, token, n_top);
                });
        }
        all.into_iter().collect()
    }

    /// Values of the residual stream.
    pub fn n_embd(&self) -> usize {
        self.shape.n_embd
    }

    /// Logits of the last pass again, for the `place`-th entry that wants some: of the tokens in `allowed` no fewer than `want`
    /// says, as [`Model::forward_for`] finds them among all. What the caller made of all of them is left as it is.
    ///
    /// # Panics
    /// When the last pass had no such entry.
    pub fn logits_among(&mut self, place: usize, want: Want<'_>, allowed: &TokenSet) -> Logits<'_> {
        let (n_vocab, n_embd) = (self.shape.n_vocab, self.shape.n_embd);
        let Buffers {
            logits,
            is_screened,
            last,
            ..
        } = &mut self.buffers;
        let n_full = is_screened.iter().filter(|it| !**it).count();
        let n_before = |kind: bool| {
            is_screened[..place]
                .iter()
                .filter(|it| **it == kind)
                .count()
        };
        let screened_place = n_before(true);
        let screening = self.screening.as_mut().filter(|_| is_screened[place]);
        let Some(screening) = screening else {
            return Logits::All(&mut logits[n_before(false) * n_vocab..][..n_vocab]);
        };
        let mut crew = Crew {
            kernel: self.kernel,
            pool: &mut self.pool,
            n_workers: self.limits.decode_workers,
            file: self.map.as_ref(),
        };
        let again = Again {
            place: screened_place,
            input: &last[place * n_embd..][..n_embd],
            want,
            allowed,
            lower: &mut logits[(n_full + screened_place) * n_vocab..][..n_vocab],
        };
        screening.find_again(&mut crew, again)
    }

    /// Computes; returns the number of entries that want logits. Those without a want in `wants` want all.
    fn run(
        &mut self,
        batch: &[Entry],
        wants: &[Want<'_>],
        kv: &mut KvCache,
        mut tick: impl FnMut(),
    ) -> usize {
        let Limits {
            batch: longest,
            logits: most,
            decode_batch,
            decode_workers,
            ..
        } = self.limits;
        let n_wanted = batch.iter().filter(|entry| entry.wants_logits).count();
        assert!(
            (1..=longest).contains(&batch.len()),
            "{} entries in a batch of {longest}",
            batch.len()
        );
        assert!(
            n_wanted <= most,
            "{n_wanted} entries want logits, there is room for {most}"
        );

        let n_workers = if batch.len() <= decode_batch {
            decode_workers
        } else {
            self.pool.size()
        };
        let mut step = Step {
            kernel: self.kernel,
            shape: &self.shape,
            pool: &mut self.pool,
            scratch: &self.scratch,
            n_workers,
            n_tokens: batch.len(),
            file: self.map.as_ref(),
        };
        self.buffers.place(batch, kv, &self.shape);
        let mut rows = self.buffers.cut(batch.len(), n_wanted, &self.shape);

        step.embed(batch, &self.weights.embedding, rows.x);
        for (number, layer) in self.weights.layers.iter().enumerate() {
            step.attention(number, layer, &mut rows, kv);
            step.feed_forward(layer, &mut rows);
            tick();
        }
        let screening = self.screening.as_mut();
        step.head(batch, wants, &self.weights, screening, &mut rows);
        self.release_rows(batch.len());
        n_wanted
    }

    /// Gives back the pages of embedding and head that may have come in when single rows will do; whoever reads the whole head keeps it.
    fn release_rows(&mut self, n_embedded: usize) {
        let is_head_elsewhere = self.is_head_elsewhere();
        let is_whole_head_read = !is_head_elsewhere && self.buffers.is_screened.contains(&false);
        self.n_rows_read += match &mut self.screening {
            Some(screening) => n_embedded + screening.take_read(),
            None if is_head_elsewhere => n_embedded,
            None => return,
        };
        self.has_mapped |= is_whole_head_read;
        if self.has_mapped && self.n_rows_read >= ROWS_TO_RELEASE && !is_whole_head_read {
            self.rest();
        }
    }

    /// Whether the head is not the file's own.
    fn is_head_elsewhere(&self) -> bool {
        let head = self.weights.head.bytes();
        self.map.as_ref().is_some_and(|map| !map.holds(head))
    }

    /// Gives back all pages of embedding and head, which come in again as they are read. Not while the whole head is read for each
    /// token, or for its copies.
    pub fn rest(&mut self) {
        let is_made = self.screening().is_some_and(Screening::is_made);
        let is_idle = is_made || self.is_head_elsewhere();
        if let Some(map) = self.map.as_ref().filter(|_| is_idle) {
            (self.has_mapped, self.n_rows_read) = (false, 0);
            map.release(self.weights.head.bytes());
            map.release(self.weights.embedding.bytes());
        }
    }
}
