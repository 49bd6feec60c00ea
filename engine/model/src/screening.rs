//! The output head without reading all of it: screens its rows by small copies, then computes the logits that matter with
//! the head's own numbers. What comes out is what the full head gives, bit for bit (bounds: `ScreenedHead`).
//!
//! The copies are made by the thread that owns the model, on its pool, a few milliseconds at a time: while idle, and
//! between two steps. Until they are complete, and for entries that need every logit, the full head is used.
//!
//! For one entry: the planes give a lower bound of every row's logit; the k-th largest of them is a threshold; rows whose
//! upper bound reaches it are refined and compared again; the rows left, and those that were named, get their logits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_kernels::{DenseMatrix, DenseType, Kernel, Query, Screen, ScreenedHead, kth_largest};

use crate::os::{self, split_columns};
use crate::pool::Pool;
use crate::protocol::HeadMode;
use crate::sampler::{Logits, TokenSet, Want};

/// Rows of a copy that a worker makes before it asks for others.
const MAKE_ROWS: usize = 64;
/// Rows that one worker screens before it asks for others: for one entry, and for several, which share them in its cache.
const SCREEN_ROWS: usize = 512;
const SCREEN_ROWS_SHARED: usize = 128;
/// Left rows that one worker refines, or computes, before it asks for others.
const REFINE_ROWS: usize = 64;
const LOGIT_ROWS: usize = 8;
/// Left rows that are asked for before their turn comes: they lie anywhere.
const AHEAD_ROWS: usize = 2;
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
    /// Rows that are left, ascending.
    rows: Vec<u32>,
    /// Those of them that were refined, and their lower bounds.
    refined: Vec<u32>,
    bounds: Vec<f32>,
    /// Their logits.
    logits: Vec<f32>,
    scratch: Vec<f32>,
}

/// The threads of a step.
pub(crate) struct Crew<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) pool: &'a mut Pool,
    pub(crate) n_workers: usize,
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
        HeadMode::Full => None,
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
        let n_vocab = self.head.matrix().rows();
        let searches = &mut self.searches[..inputs.len()];
        let screen = self.screen.unwrap_or(Screen::Proven);
        bound(&self.head, screen, searches, crew, lower);
        let lower = lower.chunks_exact_mut(n_vocab);
        for (((search, lower), input), want) in
            searches.iter_mut().zip(lower).zip(inputs).zip(wants)
        {
            let Want::Best { k, also } = *want else {
                unreachable!("who wants all logits is not screened")
            };
            let head = &self.head;
            let found =
                |search: &mut Search, screen: Screen, crew: &mut Crew<'_>, lower: &mut [f32]| {
                    search.screen = Some(screen);
                    search.narrow(head, screen, crew, lower, k, also)
                        && search.finish(head, crew, input, also.iter().copied())
                };
            if !found(search, screen, crew, lower) {
                tracing::debug!("estimates are off by more than 6 sigma, both planes are read");
                let again = std::slice::from_mut(search);
                bound(&self.head, Screen::Proven, again, crew, lower);
                found(search, Screen::Proven, crew, lower);
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
        let (k, also) = match want {
            Want::Best { k, also } => (k, also),
            Want::All => unreachable!("who wants all logits is not screened"),
        };
        let (head, search) = (&self.head, &mut self.searches[place]);
        if allowed.count() <= (k + also.len()).max(FEW_ALLOWED) {
            search.rows.clear();
            search.refined.clear();
            search.finish(head, crew, input, allowed.tokens());
        } else {
            let exclude = |lower: &mut [f32]| {
                for (row, lower) in (0..).zip(lower) {
                    if !allowed.contains(row) {
                        *lower = f32::NEG_INFINITY;
                    }
                }
            };
            let found =
                |search: &mut Search, screen: Screen, crew: &mut Crew<'_>, lower: &mut [f32]| {
                    exclude(lower);
                    search.screen = Some(screen);
                    let named = also.iter().copied().filter(|&row| allowed.contains(row));
                    search.narrow(head, screen, crew, lower, k, also)
                        && search.finish(head, crew, input, named)
                };
            let screen = search.screen.unwrap_or(Screen::Proven);
            if !found(search, screen, crew, lower) {
                let again = std::slice::from_mut(search);
                bound(head, Screen::Proven, again, crew, lower);
                found(search, Screen::Proven, crew, lower);
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
    let columns = split_columns(lower, searches.len(), head.matrix().rows(), part);
    crew.pool.run(crew.n_workers, &|_| {
        while let Some(part) = columns.take() {
            let rows = part.range();
            for (search, out) in searches.iter().zip(part.rows()) {
                head.lower_bounds(kernel, screen, rows.clone(), &search.query, out);
            }
        }
    });
}

impl Search {
    /// Leaves in `rows` all that may be among the `k` best of those not named. False when the bounds of this query are not
    /// to be trusted.
    fn narrow(
        &mut self,
        head: &ScreenedHead,
        screen: Screen,
        crew: &mut Crew<'_>,
        lower: &mut [f32],
        k: usize,
        also: &[u32],
    ) -> bool {
        let Search {
            query,
            rows,
            refined,
            bounds,
            scratch,
            ..
        } = self;
        refined.clear();
        for &row in also {
            if let Some(lower) = lower.get_mut(row as usize) {
                *lower = f32::NEG_INFINITY;
            }
        }
        let threshold = |lower: &[f32], scratch: &mut Vec<f32>| {
            kth_largest(lower, k, scratch).unwrap_or(f32::NEG_INFINITY)
        };
        rows.clear();
        head.survivors(screen, lower, query, threshold(lower, scratch), rows);
        if screen == Screen::Proven {
            return true;
        }
        bounds.clear();
        bounds.resize(rows.len(), 0.0);
        let (kernel, lower, query) = (crew.kernel, &*lower, &*query);
        let is_trusted = AtomicBool::new(true);
        let parts = rows.chunks(REFINE_ROWS).zip(bounds.chunks_mut(REFINE_ROWS));
        crew.pool
            .for_each(crew.n_workers, parts, |_, (rows, bounds)| {
                ahead(rows, |row| head.prefetch_row(row));
                for (i, (&row, bound)) in rows.iter().zip(bounds).enumerate() {
                    if let Some(&next) = rows.get(i + AHEAD_ROWS) {
                        head.prefetch_row(next as usize);
                    }
                    let refined = head.refine(kernel, row as usize, query, lower[row as usize]);
                    *bound = refined.lower;
                    if !refined.trusted {
                        is_trusted.store(false, Ordering::Relaxed);
                    }
                }
            });
        let threshold = threshold(bounds, scratch);
        let reaches = |&(row, lower): &(u32, f32)| {
            lower + head.refined_width(row as usize, query) >= threshold
        };
        let mut n_left = 0;
        for i in 0..rows.len() {
            let row = (rows[i], bounds[i]);
            if reaches(&row) {
                (rows[n_left], bounds[n_left]) = row;
                n_left += 1;
            }
        }
        rows.truncate(n_left);
        bounds.truncate(n_left);
        refined.extend_from_slice(rows);
        is_trusted.into_inner()
    }

    /// The logits of the rows left and of those named, as the full head computes them. False when a logit is further from its
    /// estimate than bounds that can be trusted allow.
    fn finish(
        &mut self,
        head: &ScreenedHead,
        crew: &mut Crew<'_>,
        input: &[f32],
        named: impl Iterator<Item = u32>,
    ) -> bool {
        let matrix = head.matrix();
        let Search {
            query,
            rows,
            refined,
            bounds,
            logits,
            ..
        } = self;
        rows.extend(named.filter(|&row| (row as usize) < matrix.rows()));
        rows.sort_unstable();
        rows.dedup();
        logits.clear();
        logits.resize(rows.len(), 0.0);
        let kernel = crew.kernel;
        let parts = rows.chunks(LOGIT_ROWS).zip(logits.chunks_mut(LOGIT_ROWS));
        crew.pool
            .for_each(crew.n_workers, parts, |_, (rows, logits)| {
                ahead(rows, |row| matrix.prefetch_row(row));
                for (i, (&row, logit)) in rows.iter().zip(logits).enumerate() {
                    if let Some(&next) = rows.get(i + AHEAD_ROWS) {
                        matrix.prefetch_row(next as usize);
                    }
                    let row = row as usize;
                    let out = std::slice::from_mut(logit);
                    kernel.dense_matmul(matrix, row..row + 1, &[input], &mut [out]);
                }
            });
        let mut all = rows.iter().zip(&*logits);
        refined.iter().zip(&*bounds).all(|(row, lower)| {
            let found = all.find(|(other, _)| *other == row);
            found.is_some_and(|(_, logit)| head.is_likely(*row as usize, query, *lower, *logit))
        })
    }
}

/// Asks for the first rows of a part.
fn ahead(rows: &[u32], prefetch: impl Fn(usize)) {
    rows.iter()
        .take(AHEAD_ROWS)
        .for_each(|&row| prefetch(row as usize));
}
