//! The operating system's part: mapped files, zeroed memory, and the two loans of memory between threads that the borrow
//! checker can't follow. The second unsafe fence.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};
use std::fs::File;
use std::hint;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bitnet_kernels::SharedBytes;

/// Ranges of mapped files are released in multiples of this: the largest page that Linux has as its base page.
const PAGE_BYTES: usize = 64 << 10;

/// Opening a pipe would wait until somebody writes into it.
///
/// # Errors
/// When `path` is anything but a regular file.
pub(crate) fn require_file(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path)? {
        found if found.is_file() => Ok(()),
        found if found.is_dir() => Err(io::Error::other("it is a directory, expected a file")),
        _ => Err(io::Error::other(
            "it is a pipe or a device, expected a file",
        )),
    }
}

/// A file mapped read-only. Cloning maps nothing anew.
#[derive(Clone, Debug)]
pub struct FileMap(Arc<Mapped>);

#[derive(Debug)]
struct Mapped {
    map: memmap2::Mmap,
    /// To read what should not be mapped.
    #[cfg(unix)]
    file: File,
}

impl FileMap {
    /// Maps a file.
    ///
    /// A file that another program truncates while it is mapped ends this process with SIGBUS; the supervisor reports it.
    ///
    /// # Errors
    /// Those of opening and mapping; an empty file can't be mapped, nor a directory, a pipe or a device.
    pub fn open(path: &Path) -> io::Result<Self> {
        require_file(path)?;
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only. Bytes that change underneath are plain numbers to us: every length and offset
        // is checked on values already copied out, so no memory rule depends on the file staying as it is.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(FileMap(Arc::new(Mapped {
            map,
            #[cfg(unix)]
            file,
        })))
    }

    /// All of it.
    pub fn bytes(&self) -> SharedBytes {
        SharedBytes::new(self.clone())
    }

    /// Whether `part` is a part of this mapping.
    pub fn holds(&self, part: &[u8]) -> bool {
        self.place(part).is_some()
    }

    /// Where in the file `part` begins, if it is a part of this mapping.
    fn place(&self, part: &[u8]) -> Option<usize> {
        let map = &self.0.map;
        let first = part.as_ptr().addr().checked_sub(map.as_ptr().addr());
        first.filter(|first| first + part.len() <= map.len())
    }

    /// The bytes of `part`. If it is a part of this mapping, they are read from the file into `buffer`: for some bytes here and there
    /// that takes a fifth of the time of mapping their pages and giving those back.
    #[cfg(unix)]
    pub fn read<'a>(&self, part: &'a [u8], buffer: &'a mut Vec<u8>) -> &'a [u8] {
        use std::os::unix::fs::FileExt;
        let Some(place) = self.place(part) else {
            return part;
        };
        buffer.resize(part.len(), 0);
        match self.0.file.read_exact_at(buffer, place as u64) {
            Ok(()) => buffer,
            Err(_) => part,
        }
    }

    /// The bytes of `part`.
    #[cfg(not(unix))]
    pub fn read<'a>(&self, part: &'a [u8], _: &'a mut Vec<u8>) -> &'a [u8] {
        part
    }

    /// [`FileMap::release`] of all of it.
    pub fn release_all(&self) {
        self.release(&self.0.map);
    }

    /// Takes the pages inside `part` out of this process's memory, if it is a part of this mapping. Whoever reads them
    /// again gets them from the file.
    #[cfg(unix)]
    pub fn release(&self, part: &[u8]) {
        let Some(first) = self.place(part) else {
            return;
        };
        let start = first.next_multiple_of(PAGE_BYTES);
        let end = (first + part.len()) / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            return;
        }
        // SAFETY: a read-only mapping of a file has no changes to lose; the pages come back with the file's content.
        let advised = unsafe {
            self.0.map.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                start,
                end - start,
            )
        };
        if let Err(error) = advised {
            tracing::debug!(%error, "pages of the model file stay mapped");
        }
    }

    /// Nothing to do here.
    #[cfg(not(unix))]
    pub fn release(&self, _: &[u8]) {}
}

impl AsRef<[u8]> for FileMap {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

/// Asks the system to keep these bytes in memory as long as they are mapped.
///
/// # Errors
/// The system's refusal, mostly for the limit that `ulimit -l` shows.
#[cfg(unix)]
pub fn lock_in_memory(bytes: &[u8]) -> io::Result<()> {
    unsafe extern "C" {
        fn mlock(address: *const std::ffi::c_void, len: usize) -> std::ffi::c_int;
    }
    // SAFETY: mlock(2) changes no memory; the range is a live slice, and the system checks it itself.
    match unsafe { mlock(bytes.as_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Not available here.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub fn lock_in_memory(_: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Reads a whole file into memory of large pages.
///
/// # Errors
/// Those of opening and reading; when there is no memory for it.
pub fn read_whole(path: &Path) -> io::Result<SharedBytes> {
    require_file(path)?;
    let mut file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = zeroed_huge(len).ok_or(io::ErrorKind::OutOfMemory)?;
    file.read_exact(&mut bytes)?;
    Ok(SharedBytes::new(bytes))
}

/// Numbers for which all bits zero is the value 0.
pub trait Number: sealed::Sealed + Copy + Send + Sync + 'static {}
impl Number for u8 {}
impl Number for u16 {}
impl Number for f32 {}
impl Number for [u8; 34] {}
mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for f32 {}
    impl Sealed for [u8; 34] {}
}

/// `len` zeros whose pages the system hands out at the first write; `None` when it refuses that much address space.
pub fn zeroed<T: Number>(len: usize) -> Option<Vec<T>> {
    let layout = Layout::array::<T>(len).ok()?;
    if layout.size() == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout's size is not zero.
    let start = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast::<T>();
    // SAFETY: the global allocator just gave `layout`, which is the layout of `len` values of `T`, and zero bits are a
    // valid `T` (only the numbers above implement the sealed trait).
    Some(unsafe { Vec::from_raw_parts(start.as_ptr(), len, len) })
}

/// [`zeroed`] on huge pages where the system has them to give: a walk over much memory then waits less for page tables.
pub fn zeroed_huge(len: usize) -> Option<Vec<u8>> {
    let bytes = zeroed(len)?;
    advise_huge(&bytes);
    Some(bytes)
}

#[cfg(target_os = "linux")]
fn advise_huge(bytes: &[u8]) {
    const HUGE_PAGE_BYTES: usize = 2 << 20;
    const MADV_HUGEPAGE: std::ffi::c_int = 14;
    unsafe extern "C" {
        fn madvise(
            address: *mut std::ffi::c_void,
            len: usize,
            advice: std::ffi::c_int,
        ) -> std::ffi::c_int;
    }
    let skipped = bytes.as_ptr().align_offset(HUGE_PAGE_BYTES);
    let Some(aligned) = bytes.get(skipped..) else {
        return;
    };
    let len = aligned.len() / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    // SAFETY: this advice changes no memory, only which pages will hold it; the range is inside a live slice. Without huge
    // pages the system refuses, and nothing is lost.
    unsafe { madvise(aligned.as_ptr().cast_mut().cast(), len, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_: &[u8]) {}

/// What a pool's threads run: called with the number of the worker.
pub type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Lends a borrowed closure to other threads for the length of one call, as `std::thread::scope` does for threads.
pub struct Lender {
    ledger: Arc<Ledger>,
    spin: Duration,
}

/// Loans not given back yet, and who waits for them.
struct Ledger {
    /// Number of open loans, plus [`WAITER_SLEEPS`] while the lender is parked or about to be.
    open: AtomicUsize,
    waiter: Mutex<Option<Thread>>,
}

const WAITER_SLEEPS: usize = 1 << (usize::BITS - 1);

/// A closure on loan; dropping it gives it back.
pub struct Loan {
    task: &'static Task<'static>,
    ledger: Arc<Ledger>,
}

impl Lender {
    /// `spin`: how long [`Lender::lend`] waits actively for the last loan before it parks.
    pub fn new(spin: Duration) -> Self {
        let ledger = Ledger {
            open: AtomicUsize::new(0),
            waiter: Mutex::new(None),
        };
        Lender {
            ledger: Arc::new(ledger),
            spin,
        }
    }

    /// Makes `n_loans` loans of `task`, passes each with its number to `give`, runs `meanwhile`, and waits until all loans
    /// are given back. A loan that is never dropped makes this wait forever.
    pub fn lend(
        &mut self,
        task: &Task<'_>,
        n_loans: usize,
        mut give: impl FnMut(usize, Loan),
        meanwhile: impl FnOnce(),
    ) {
        // SAFETY: only the lifetime changes. Each copy of the reference lives in a `Loan`; `wait` below does not let this
        // function return or unwind before every loan made here has been dropped, so none outlives the borrow `task`.
        let task: &'static Task<'static> = unsafe { std::mem::transmute(task) };
        let wait = WaitForLoans(self);
        for number in 0..n_loans {
            self.ledger.open.fetch_add(1, Ordering::Relaxed);
            let ledger = Arc::clone(&self.ledger);
            give(number, Loan { task, ledger });
        }
        meanwhile();
        drop(wait);
    }
}

impl Loan {
    /// Runs the closure.
    pub fn call(&self, worker: usize) {
        (self.task)(worker);
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Release: what the closure wrote happens before the lender goes on.
        if self.ledger.open.fetch_sub(1, Ordering::AcqRel) == WAITER_SLEEPS | 1 {
            let waiter = self.ledger.waiter.lock();
            if let Some(thread) = &*waiter.unwrap_or_else(PoisonError::into_inner) {
                thread.unpark();
            }
        }
    }
}

/// Waits for all loans when dropped, unwinding included.
struct WaitForLoans<'a>(&'a Lender);

impl Drop for WaitForLoans<'_> {
    fn drop(&mut self) {
        let ledger = &*self.0.ledger;
        if spin_until(self.0.spin, || ledger.open.load(Ordering::Acquire) == 0) {
            return;
        }
        let mut waiter = ledger.waiter.lock().unwrap_or_else(PoisonError::into_inner);
        *waiter = Some(thread::current());
        drop(waiter);
        ledger.open.fetch_or(WAITER_SLEEPS, Ordering::AcqRel);
        while ledger.open.load(Ordering::Acquire) != WAITER_SLEEPS {
            thread::park();
        }
        ledger.open.store(0, Ordering::Relaxed);
    }
}

/// Waits actively, at most `limit`, until `done`; says whether it came true.
pub fn spin_until(limit: Duration, done: impl Fn() -> bool) -> bool {
    const LOOKS_PER_CLOCK_READ: usize = 32;
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS_PER_CLOCK_READ {
            if done() {
                return true;
            }
            hint::spin_loop();
        }
        if start.elapsed() >= limit {
            return false;
        }
    }
}

/// A `[n_tokens, stride]` matrix cut into ranges of columns that several threads take one after the other.
pub struct Columns<'a> {
    base: *mut f32,
    n_tokens: usize,
    stride: usize,
    part: usize,
    next: AtomicUsize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: threads that share `Columns` only reach disjoint parts of the matrix, each handed out once by the counter.
unsafe impl Sync for Columns<'_> {}

/// One range of columns of every token; nobody else holds it.
pub struct ColumnPart<'a> {
    base: *mut f32,
    n_tokens: usize,
    stride: usize,
    range: Range<usize>,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for the `&mut [f32]` it yields, and those may move between threads.
unsafe impl Send for ColumnPart<'_> {}

/// Cuts `matrix: [n_tokens, stride]` into parts of `part` columns; the last one may be narrower.
///
/// # Panics
/// When the length is not `n_tokens * stride`, or `part` is 0.
pub fn split_columns(
    matrix: &mut [f32],
    n_tokens: usize,
    stride: usize,
    part: usize,
) -> Columns<'_> {
    assert_eq!(
        Some(matrix.len()),
        n_tokens.checked_mul(stride),
        "not [n_tokens, stride]"
    );
    assert!(part > 0, "a part has at least one column");
    Columns {
        base: matrix.as_mut_ptr(),
        n_tokens,
        stride,
        part,
        next: AtomicUsize::new(0),
        matrix: PhantomData,
    }
}

impl<'a> Columns<'a> {
    /// The next part nobody has taken; `None` when there is no more.
    pub fn take(&self) -> Option<ColumnPart<'a>> {
        // The counter would wrap after 2^64 calls; each value below the number of parts is seen once.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let start = number
            .checked_mul(self.part)
            .filter(|&start| start < self.stride)?;
        Some(ColumnPart {
            base: self.base,
            n_tokens: self.n_tokens,
            stride: self.stride,
            range: start..self.stride.min(start + self.part),
            matrix: PhantomData,
        })
    }
}

impl<'a> ColumnPart<'a> {
    /// The columns.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// For each token, its values in these columns.
    pub fn rows(self) -> impl Iterator<Item = &'a mut [f32]> {
        let ColumnPart {
            base,
            n_tokens,
            stride,
            range,
            ..
        } = self;
        (0..n_tokens).map(move |token| {
            // SAFETY: token < n_tokens and range.end <= stride, so the slice lies in the matrix that `Columns` borrowed for
            // 'a. Parts have disjoint ranges, rows of one part differ in `token`, and `self` is consumed: no two overlap.
            unsafe {
                std::slice::from_raw_parts_mut(base.add(token * stride + range.start), range.len())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_handed_out_once_and_cover_everything() {
        for (n_tokens, stride, part) in [(1, 10, 3), (3, 16, 16), (2, 7, 100), (4, 5, 1), (0, 4, 2)]
        {
            let mut matrix = vec![0.0; n_tokens * stride];
            let columns = split_columns(&mut matrix, n_tokens, stride, part);
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while let Some(taken) = columns.take() {
                            let range = taken.range();
                            for (token, row) in taken.rows().enumerate() {
                                for (value, column) in row.iter_mut().zip(range.clone()) {
                                    *value += (token * stride + column + 1) as f32;
                                }
                            }
                        }
                    });
                }
            });
            let expected: Vec<f32> = (1..=n_tokens * stride).map(|n| n as f32).collect();
            assert_eq!(matrix, expected);
        }
    }

    #[test]
    fn a_loan_sees_the_borrowed_data_and_ends_with_the_call() {
        let counts: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        for spin in [Duration::ZERO, Duration::from_millis(20)] {
            let mut lender = Lender::new(spin);
            let task = |worker: usize| {
                thread::sleep(Duration::from_millis(2));
                counts[worker].fetch_add(1, Ordering::Relaxed);
            };
            lender.lend(
                &task,
                3,
                |number, loan| drop(thread::spawn(move || loan.call(number + 1))),
                || task(0),
            );
        }
        assert!(
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) == 2)
        );
    }

    #[test]
    fn released_pages_come_back_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..5 * PAGE_BYTES + 7).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let map = FileMap::open(&path).unwrap();
        let bytes = map.bytes();
        assert_eq!(*bytes, content[..]);
        map.release(&bytes[100..3 * PAGE_BYTES]);
        map.release(&[1, 2, 3]);
        map.release(&content);
        map.release_all();
        assert_eq!(*bytes, content[..]);
        let mut buffer = Vec::new();
        for range in [0..10, 70_001..200_000, 0..content.len(), 5..5] {
            let found = map.read(&bytes[range.clone()], &mut buffer);
            assert_eq!(found, &content[range]);
            assert!(!cfg!(unix) || found.is_empty() || !map.holds(found));
        }
        assert_eq!(map.read(&[1, 2, 3], &mut buffer), [1, 2, 3]);
    }

    #[test]
    fn zeros_are_zero_and_too_many_are_refused() {
        assert_eq!(zeroed::<u16>(1000).unwrap(), vec![0; 1000]);
        assert_eq!(zeroed::<f32>(0).unwrap(), Vec::<f32>::new());
        assert!(zeroed::<f32>(usize::MAX / 8).is_none());
    }
}
