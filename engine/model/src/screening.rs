//! The output head without reading all of it: screens its rows by small copies, then computes the logits that matter with
//! the head's own numbers. What comes out is what the full head gives, bit for bit (bounds: `ScreenedHead`).
//!
//! The copies are made by the thread that owns the model, on its pool, a few milliseconds at a time: while idle, and
//! between two steps. Until they are complete, and for entries that need every logit, the full head is used.
//!
//! For one entry: the high plane gives a lower bound of every row's logit; of somewhat more than the k best of them the bounds are refined, and the k-th
//! largest of these is a threshold; rows whose upper bound reaches it are refined and compared again; the rows left, and those that were
//! named, get their logits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_kernels::{
    DenseMatrix, DenseType, Kernel, Peaks, Query, Screen, ScreenedHead, kth_largest,
};

use crate::os::{self, FileMap, split_columns};
use crate::pool::Pool;
use crate::protocol::HeadMode;
use crate::sampler::{Logits, TokenSet, Want};

/// Rows of a copy that a worker makes before it asks for others.
const MAKE_ROWS: usize = 64;
/// Rows that one worker screens before it asks for others: for one entry, and for several, which share them in its cache.
const SCREEN_ROWS: usize = 512;
const SCREEN_ROWS_SHARED: usize = 128;
/// Entries whose bounds are found in one walk over the rows of a part.
const WALK_ENTRIES: usize = 8;
/// Rows whose bounds are refined to find a threshold: so many for each of the k best, and some more.
const SEEDS_EACH: usize = 2;
const SEEDS_MORE: usize = 16;
/// Rows, of which one worker refines those left before it asks for others: 1.3 MB of each plane of 2B-4T.
const REFINE_RANGE: usize = 1024;
/// Left rows whose logits one worker computes before it asks for others.
const LOGIT_ROWS: usize = 8;
/// Left rows that are asked for before their turn comes: they lie anywhere.
const AHEAD_ROWS: usize = 3;
/// Tokens that are allowed, up to which all of them get their logits.
const FEW_ALLOWED: usize = 256;
/// Share of the vocabulary beyond which naming rows is not worth it.
const WORTH: usize = 8;

/// Copies of the head, complete or not, and memory for searches.
pub struct Screening {
    head: ScreenedHead,
    /// `None`: nothing is screened.
    screen: Option<Screen>,
    searches: Vec<Search>,
    n_read: usize,
    /// Per worker, for making copies.
    scratch: Vec<std::sync::Mutex<Vec<f32>>>,
}

/// What one entry of a batch needs to find its logits.
#[derive(Default)]
struct Search {
    query: Query,
    /// By what the lower bounds of the last pass were found.
    screen: Option<Screen>,
    /// Of those bounds.
    peaks: Peaks,
    /// At least `k` rows reach it.
    threshold: f32,
    /// Rows that are left, ascending.
    rows: Vec<u32>,
    /// Those of them that were refined, and their lower bounds.
    refined: Vec<u32>,
    bounds: Vec<f32>,
    /// Their logits.
    logits: Vec<f32>,
    scratch: Vec<f32>,
    /// Whether no estimate was seen to be off by more than bounds allow.
    is_trusted: AtomicBool,
}

/// The threads of a step.
pub(crate) struct Crew<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) pool: &'a mut Pool,
    pub(crate) n_workers: usize,
    /// The file in which the head may lie, if single rows are to be read from it.
    pub(crate) file: Option<&'a FileMap>,
}

/// The entries of a batch that are screened.
pub(crate) struct Job<'a> {
    /// `[n]` rows of `[n_embd]`; each has passed [`Screening::can_screen`] with its place here.
    pub(crate) inputs: &'a [&'a [f32]],
    /// `[n]`
    pub(crate) wants: &'a [Want<'a>],
    /// `[n, n_vocab]`, overwritten.
    pub(crate) lower: &'a mut [f32],
}

/// An entry of the last batch once more, among fewer tokens.
pub(crate) struct Again<'a> {
    /// Among the entries that were screened.
    pub(crate) place: usize,
    /// `[n_embd]`
    pub(crate) input: &'a [f32],
    pub(crate) want: Want<'a>,
    pub(crate) allowed: &'a TokenSet,
    /// `[n_vocab]` as the last pass left it; changed.
    pub(crate) lower: &'a mut [f32],
}

/// Bytes that the copies of a head take.
pub fn bytes(rows: usize, cols: usize) -> u64 {
    // Scale and four bounds per row.
    2 * ScreenedHead::plane_bytes(rows, cols) as u64 + 20 * rows as u64
}

/// Whether heads of this shape can be screened.
pub fn fits(cols: usize) -> bool {
    ScreenedHead::fits(cols)
}

fn screen_of(mode: HeadMode) -> Option<Screen> {
    match mode {
        HeadMode::Full | HeadMode::Q8_0 | HeadMode::Q6_K => None,
        HeadMode::Exact => Some(Screen::Exact),
        HeadMode::Proven => Some(Screen::Proven),
    }
}

impl Screening {
    /// Memory for the copies; nothing is made yet. `None` when `mode` wants none, the head is quantised already or too wide,
    /// or there is no memory: then the full head does all the work.
    pub fn new(matrix: &DenseMatrix, mode: HeadMode, n_entries: usize) -> Option<Self> {
        let screen = screen_of(mode);
        screen?;
        let is_float = matches!(
            matrix.ty(),
            DenseType::F32 | DenseType::F16 | DenseType::BF16
        );
        if !is_float || !fits(matrix.cols()) {
            tracing::warn!(ty = %matrix.ty(), cols = matrix.cols(), "this output head can't be screened and is read in full");
            return None;
        }
        let len = ScreenedHead::plane_bytes(matrix.rows(), matrix.cols());
        let (Some(high), Some(low)) = (os::zeroed_huge(len), os::zeroed_huge(len)) else {
            let mb = bytes(matrix.rows(), matrix.cols()) >> 20;
            tracing::warn!(
                mb,
                "no memory to screen the output head, it is read in full"
            );
            return None;
        };
        let mut searches = Vec::new();
        searches.resize_with(n_entries, Search::default);
        Some(Screening {
            head: ScreenedHead::new(matrix.clone(), [high, low]),
            screen,
            searches,
            n_read: 0,
            scratch: Vec::new(),
        })
    }

    /// Another mode from now on.
    pub fn set_mode(&mut self, mode: HeadMode) {
        self.screen = screen_of(mode);
    }

    /// Whether the copies are complete.
    pub fn is_made(&self) -> bool {
        self.head.is_made()
    }

    /// Goes on making copies for about `time`.
    pub(crate) fn make(&mut self, crew: &mut Crew<'_>, time: Duration) {
        let began = Instant::now();
        let kernel = crew.kernel;
        self.scratch.resize_with(crew.n_workers, Default::default);
        let n = MAKE_ROWS * crew.n_workers * 4;
        while !self.head.is_made() {
            let parts = self.head.unmade_rows(n, MAKE_ROWS);
            let scratch = &self.scratch;
            crew.pool.for_each(crew.n_workers, parts, |worker, rows| {
                let mut scratch = scratch[worker]
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                rows.make(kernel, &mut scratch);
            });
            self.head.accept(n);
            if began.elapsed() >= time {
                break;
            }
        }
    }

    /// Takes `input` as the `place`-th to be screened; says whether it can be.
    pub(crate) fn can_screen(&mut self, place: usize, input: &[f32], want: Want<'_>) -> bool {
        let Want::Best { k, also } = want else {
            return false;
        };
        if self.screen.is_none()
            || !self.is_made()
            || k + also.len() > self.head.matrix().rows() / WORTH
        {
            return false;
        }
        let query = &mut self.searches[place].query;
        query.set(input);
        self.head.can_screen(query)
    }

    /// Finds the logits of all entries.
    pub(crate) fn find(&mut self, crew: &mut Crew<'_>, job: Job<'_>) {
        let Job {
            inputs,
            wants,
            lower,
        } = job;
        let head = &self.head;
        let searches = &mut self.searches[..inputs.len()];
        let goals = inputs.iter().zip(wants);
        let goals: Vec<_> = goals.map(|(input, want)| Goal::new(input, *want)).collect();
        let screen = self.screen.unwrap_or(Screen::Proven);
        bound(head, screen, searches, crew, lower);
        settle(head, screen, searches, &goals, crew, lower);
        let lower = lower.chunks_exact_mut(head.matrix().rows());
        for ((search, goal), lower) in searches.iter_mut().zip(&goals).zip(lower) {
            if !search.is_trusted() {
                tracing::debug!("estimates are off by more than 5 sigma, both planes are read");
                search.prove(head, goal, crew, lower);
            }
            self.n_read += search.rows.len();
        }
    }

    /// Finds the logits that are wanted of the tokens allowed; the bounds of the last pass still hold.
    pub(crate) fn find_again(&mut self, crew: &mut Crew<'_>, again: Again<'_>) -> Logits<'_> {
        let Again {
            place,
            input,
            want,
            allowed,
            lower,
        } = again;
        let goal = Goal {
            allowed: Some(allowed),
            ..Goal::new(input, want)
        };
        let (head, search) = (&self.head, &mut self.searches[place]);
        if allowed.count() <= (goal.k + goal.also.len()).max(FEW_ALLOWED) {
            search.rows.clear();
            search.refined.clear();
            search.name(head, allowed.tokens());
            compute(head, std::slice::from_mut(search), &[goal], crew);
        } else {
            let screen = search.screen.unwrap_or(Screen::Proven);
            let one = std::slice::from_mut(search);
            settle(head, screen, one, &[goal], crew, lower);
            if !search.is_trusted() {
                search.prove(head, &goal, crew, lower);
            }
        }
        self.n_read += search.rows.len();
        Logits::Best {
            tokens: &search.rows,
            logits: &mut search.logits,
        }
    }

    /// The logits found, in the order of the job's entries.
    pub(crate) fn found(&mut self) -> impl Iterator<Item = Logits<'_>> {
        self.searches.iter_mut().map(|search| Logits::Best {
            tokens: &search.rows,
            logits: &mut search.logits,
        })
    }

    /// Rows of the head itself that were read since this was last asked.
    pub(crate) fn take_read(&mut self) -> usize {
        std::mem::take(&mut self.n_read)
    }

    /// The copies.
    pub fn planes(&self) -> [&[u8]; 2] {
        self.head.planes()
    }
}

/// `lower: [searches, n_vocab]` becomes lower bounds of all logits; one pass over the planes for all searches.
fn bound(
    head: &ScreenedHead,
    screen: Screen,
    searches: &[Search],
    crew: &mut Crew<'_>,
    lower: &mut [f32],
) {
    let kernel = crew.kernel;
    let part = match searches.len() {
        1 => SCREEN_ROWS,
        _ => SCREEN_ROWS_SHARED,
    };
    let queries: Vec<&Query> = searches.iter().map(|search| &search.query).collect();
    let columns = split_columns(lower, searches.len(), head.matrix().rows(), part);
    crew.pool.run(crew.n_workers, &|_| {
        while let Some(part) = columns.take() {
            let rows = part.range();
            let mut all = part.rows();
            for queries in queries.chunks(WALK_ENTRIES) {
                let mut next = || all.next().unwrap_or_default();
                let mut out: [&mut [f32]; WALK_ENTRIES] = std::array::from_fn(|i| match i {
                    i if i < queries.len() => next(),
                    _ => Default::default(),
                });
                let out = &mut out[..queries.len()];
                head.lower_bounds(kernel, screen, rows.clone(), queries, out);
            }
        }
    });
}

/// From lower bounds by `screen` to the logits of each search, all searches step by step together.
fn settle(
    head: &ScreenedHead,
    screen: Screen,
    searches: &mut [Search],
    goals: &[Goal<'_>],
    crew: &mut Crew<'_>,
    lower: &mut [f32],
) {
    let (n_vocab, kernel) = (head.matrix().rows(), crew.kernel);
    let n_workers = crew.n_workers.min(searches.len());
    let entries = searches.iter_mut().zip(goals);
    let entries = entries.zip(lower.chunks_exact_mut(n_vocab));
    crew.pool
        .for_each(n_workers, entries, |_, ((search, goal), lower)| {
            search.reach(head, kernel, screen, goal, lower);
        });
    if screen == Screen::Exact {
        refine(head, searches, crew);
    }
    let entries = searches.iter_mut().zip(goals);
    crew.pool.for_each(n_workers, entries, |_, (search, goal)| {
        if screen == Screen::Exact {
            search.keep(head, goal.k);
        }
        search.name(head, goal.named());
    });
    compute(head, searches, goals, crew);
    for search in searches {
        search.check(head);
    }
}

/// Bounds by both planes of the rows that each search has left. Range of rows by range, so that what several searches have left
/// comes from memory once.
fn refine(head: &ScreenedHead, searches: &mut [Search], crew: &mut Crew<'_>) {
    let n_vocab = head.matrix().rows();
    let kernel = crew.kernel;
    let left = searches.iter_mut().map(|search| Unrefined {
        query: &search.query,
        is_trusted: &search.is_trusted,
        threshold: search.threshold,
        rows: &search.rows,
        bounds: &mut search.bounds,
    });
    let mut left: Vec<Unrefined<'_>> = left.collect();
    let ends = (1..=n_vocab.div_ceil(REFINE_RANGE)).map(|i| i * REFINE_RANGE);
    let parts = ends.map(|end| {
        let parts = left.iter_mut().map(|it| it.split_below(end));
        parts.collect::<Vec<_>>()
    });
    crew.pool.for_each(crew.n_workers, parts, |_, parts| {
        for part in parts {
            part.refine(head, kernel);
        }
    });
}

/// The logits of all rows left, as the full head computes them.
fn compute(head: &ScreenedHead, searches: &mut [Search], goals: &[Goal<'_>], crew: &mut Crew<'_>) {
    let (matrix, kernel, file) = (head.matrix(), crew.kernel, crew.file);
    let file = file.filter(|file| file.holds(matrix.bytes()));
    let parts = searches.iter_mut().zip(goals).flat_map(|(search, goal)| {
        let rows = search.rows.chunks(LOGIT_ROWS);
        let parts = rows.zip(search.logits.chunks_mut(LOGIT_ROWS));
        parts.map(|(rows, logits)| (goal.input, rows, logits))
    });
    crew.pool
        .for_each(crew.n_workers, parts, |_, (input, rows, logits)| {
            let mut buffer = Vec::new();
            let prefetch = |row: u32| match file {
                Some(_) => {}
                None => matrix.prefetch_row(row as usize),
            };
            ahead(rows, prefetch);
            for (i, (&row, logit)) in rows.iter().zip(logits).enumerate() {
                if let Some(&next) = rows.get(i + AHEAD_ROWS) {
                    prefetch(next);
                }
                let row = matrix.row(row as usize);
                let row = file.map_or(row, |file| file.read(row, &mut buffer));
                *logit = kernel.dense_product(matrix.ty(), row, input);
            }
        });
}

/// What an entry wants.
#[derive(Clone, Copy)]
struct Goal<'a> {
    /// `[n_embd]`
    input: &'a [f32],
    k: usize,
    also: &'a [u32],
    /// `None`: all tokens.
    allowed: Option<&'a TokenSet>,
}

impl<'a> Goal<'a> {
    fn new(input: &'a [f32], want: Want<'a>) -> Self {
        let Want::Best { k, also } = want else {
            unreachable!("who wants all logits is not screened")
        };
        Goal {
            input,
            k,
            also,
            allowed: None,
        }
    }

    /// Tokens to be computed in any case.
    fn named(&self) -> impl Iterator<Item = u32> {
        let allows = |row: &u32| self.allowed.is_none_or(|allowed| allowed.contains(*row));
        self.also.iter().copied().filter(allows)
    }
}

/// Some of the rows that a search has left, and their bounds to be.
struct Unrefined<'a> {
    query: &'a Query,
    is_trusted: &'a AtomicBool,
    /// Rows below are of no interest.
    threshold: f32,
    rows: &'a [u32],
    /// By the high plane; then refined.
    bounds: &'a mut [f32],
}

impl<'a> Unrefined<'a> {
    /// Takes those below `end` away.
    fn split_below(&mut self, end: usize) -> Unrefined<'a> {
        let n = self.rows.partition_point(|&row| (row as usize) < end);
        let (rows, other_rows) = self.rows.split_at(n);
        let (bounds, other_bounds) = std::mem::take(&mut self.bounds).split_at_mut(n);
        (self.rows, self.bounds) = (other_rows, other_bounds);
        Unrefined {
            rows,
            bounds,
            ..*self
        }
    }

    fn refine(self, head: &ScreenedHead, kernel: Kernel) {
        ahead(self.rows, |row| head.prefetch_row(row as usize));
        for (i, (&row, bound)) in self.rows.iter().zip(self.bounds).enumerate() {
            if let Some(&next) = self.rows.get(i + AHEAD_ROWS) {
                head.prefetch_row(next as usize);
            }
            let row = row as usize;
            let refined = head.refine(kernel, row, self.query, *bound, self.threshold);
            *bound = refined.lower;
            if !refined.trusted {
                self.is_trusted.store(false, Ordering::Relaxed);
            }
        }
    }
}

impl Search {
    /// Whether the bounds of this query hold as far as one can see.
    fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    /// Leaves in `rows` all that may be among the `k` best of those allowed and not named. `lower: [n_vocab]`, changed.
    fn reach(
        &mut self,
        head: &ScreenedHead,
        kernel: Kernel,
        screen: Screen,
        goal: &Goal<'_>,
        lower: &mut [f32],
    ) {
        self.screen = Some(screen);
        *self.is_trusted.get_mut() = true;
        if let Some(allowed) = goal.allowed {
            for (row, lower) in (0..).zip(&mut *lower) {
                if !allowed.contains(row) {
                    *lower = f32::NEG_INFINITY;
                }
            }
        }
        for &row in goal.also {
            if let Some(lower) = lower.get_mut(row as usize) {
                *lower = f32::NEG_INFINITY;
            }
        }
        self.peaks.find(lower);
        let refined = match screen {
            Screen::Exact => self.refined_threshold(head, kernel, lower, goal.k),
            Screen::Proven => None,
        };
        let scratch = &mut self.scratch;
        let threshold = refined.or_else(|| self.peaks.kth_largest(lower, goal.k, scratch));
        self.threshold = threshold.unwrap_or(f32::NEG_INFINITY);
        let lower = (&*lower, &self.peaks);
        self.refined.clear();
        let left = (&mut self.rows, &mut self.bounds);
        head.survivors(screen, lower, &self.query, self.threshold, left);
    }

    /// The k-th largest refined bound of the rows with the largest bounds by the high plane; `None` when there are too few. It is about a
    /// margin above the k-th largest of all bounds, so that a tenth as many rows reach it.
    fn refined_threshold(
        &mut self,
        head: &ScreenedHead,
        kernel: Kernel,
        lower: &[f32],
        k: usize,
    ) -> Option<f32> {
        let n = SEEDS_EACH * k + SEEDS_MORE;
        let least = self.peaks.kth_largest(lower, n, &mut self.scratch)?;
        self.rows.clear();
        self.bounds.clear();
        // More are there only if they are equal; any of them will do.
        self.peaks.reaching(lower, least, |row, lower| {
            if self.rows.len() < 2 * n {
                self.rows.push(row as u32);
                self.bounds.push(lower);
            }
        });
        let seeds = Unrefined {
            query: &self.query,
            is_trusted: &self.is_trusted,
            threshold: f32::NEG_INFINITY,
            rows: &self.rows,
            bounds: &mut self.bounds,
        };
        seeds.refine(head, kernel);
        kth_largest(&self.bounds, k, &mut self.scratch)
    }

    /// Of the rows left, those that may be among the `k` best by their refined bounds.
    fn keep(&mut self, head: &ScreenedHead, k: usize) {
        let bounds = std::mem::take(&mut self.bounds);
        let threshold = kth_largest(&bounds, k, &mut self.scratch).unwrap_or(f32::NEG_INFINITY);
        self.bounds = bounds;
        let mut n_left = 0;
        for i in 0..self.rows.len() {
            let (row, lower) = (self.rows[i], self.bounds[i]);
            if lower + head.refined_width(row as usize, &self.query) >= threshold {
                (self.rows[n_left], self.bounds[n_left]) = (row, lower);
                n_left += 1;
            }
        }
        self.rows.truncate(n_left);
        self.bounds.truncate(n_left);
        self.refined.extend_from_slice(&self.rows);
    }

    /// Adds rows that are wanted in any case, and makes room for the logits of all.
    fn name(&mut self, head: &ScreenedHead, named: impl Iterator<Item = u32>) {
        let n_rows = head.matrix().rows();
        self.rows
            .extend(named.filter(|&row| (row as usize) < n_rows));
        self.rows.sort_unstable();
        self.rows.dedup();
        self.logits.clear();
        self.logits.resize(self.rows.len(), 0.0);
    }

    /// Distrusts bounds when a logit is further from its estimate than bounds that can be trusted allow.
    fn check(&mut self, head: &ScreenedHead) {
        let mut all = self.rows.iter().zip(&self.logits);
        let are_likely = self.refined.iter().zip(&self.bounds).all(|(row, lower)| {
            let found = all.find(|(other, _)| *other == row);
            found.is_some_and(|(_, logit)| {
                head.is_likely(*row as usize, &self.query, *lower, *logit)
            })
        });
        if !are_likely {
            *self.is_trusted.get_mut() = false;
        }
    }

    /// Everything once more by bounds that always hold.
    fn prove(
        &mut self,
        head: &ScreenedHead,
        goal: &Goal<'_>,
        crew: &mut Crew<'_>,
        lower: &mut [f32],
    ) {
        let one = std::slice::from_mut(self);
        bound(head, Screen::Proven, one, crew, lower);
        settle(head, Screen::Proven, one, &[*goal], crew, lower);
    }
}

/// Asks for the first rows of a part.
fn ahead(rows: &[u32], prefetch: impl Fn(u32)) {
    let first = rows.iter().take(AHEAD_ROWS);
    first.for_each(|&row| prefetch(row));
}
