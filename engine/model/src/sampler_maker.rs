//! Makes the samplers that need the vocabulary, those with a grammar or with DRY's breakers, on a thread of their own: reading
//! it takes a quarter of a second the first time, compiling a grammar and following an answer so far some milliseconds, and
//! others get their tokens meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use crate::grammar::{Constraint, GrammarError, Vocabulary};
use crate::protocol::{SamplerKind, Submit};
use crate::sampler::{Breakers, Sampler};
use crate::tokenizer::Tokenizer;

/// Reads the tokenizer; called at most once.
pub(crate) type ReadTokenizer = Box<dyn FnOnce() -> Result<Tokenizer, String> + Send>;

/// A sampler, or why there is none; with the generation's id.
pub(crate) type Made = (u64, Result<Sampler, GrammarError>);

/// The thread, once it is needed.
pub(crate) struct SamplerMaker {
    read: Option<ReadTokenizer>,
    thread: Option<(Sender<Submit>, Receiver<Made>)>,
}

impl SamplerMaker {
    pub(crate) fn new(read: ReadTokenizer) -> Self {
        SamplerMaker {
            read: Some(read),
            thread: None,
        }
    }

    /// The sampler, if it needs no vocabulary; otherwise it comes out of [`SamplerMaker::next`] later.
    pub(crate) fn make(&mut self, submit: &Submit) -> Option<Sampler> {
        let sampling = &submit.sampling;
        let has_breakers = sampling.dry_multiplier != 0.0
            && sampling.samplers.contains(&SamplerKind::Dry)
            && !sampling.dry_sequence_breakers.is_empty();
        if sampling.grammar.is_none() && !has_breakers {
            return Some(plain(submit));
        }
        if let Some(read) = self.read.take() {
            let (orders, inbox) = mpsc::channel::<Submit>();
            let (outbox, made) = mpsc::channel::<Made>();
            let work = move || {
                let mut workshop = Workshop::Unread(Some(read));
                for submit in inbox {
                    if outbox.send((submit.id, workshop.make(&submit))).is_err() {
                        return;
                    }
                }
            };
            match thread::Builder::new()
                .name("samplers".to_owned())
                .spawn(work)
            {
                Ok(_) => self.thread = Some((orders, made)),
                Err(error) => tracing::error!(%error, "no thread for grammars"),
            }
        }
        let order = Submit {
            tokens: Vec::new(),
            ..submit.clone()
        };
        let is_ordered = self
            .thread
            .as_ref()
            .is_some_and(|(orders, _)| orders.send(order).is_ok());
        // Without a thread the generation goes on as far as it can: it would wait for ever.
        (!is_ordered).then(|| plain(submit))
    }

    /// The next sampler that is ready within `wait`.
    pub(crate) fn next(&self, wait: Duration) -> Option<Made> {
        let (_, made) = self.thread.as_ref()?;
        match wait.is_zero() {
            true => made.try_recv().ok(),
            false => made.recv_timeout(wait).ok(),
        }
    }
}

fn plain(submit: &Submit) -> Sampler {
    Sampler::new(submit.sampling.clone(), submit.eog_tokens.clone()).resume(&submit.carried)
}

/// What the thread owns.
enum Workshop {
    Unread(Option<ReadTokenizer>),
    Failed(String),
    Open(Box<Tools>),
}

struct Tools {
    tokenizer: Tokenizer,
    vocabulary: Option<Arc<Vocabulary>>,
    /// Those made last, with their texts.
    breakers: (Vec<String>, Arc<Breakers>),
}

impl Workshop {
    fn make(&mut self, submit: &Submit) -> Result<Sampler, GrammarError> {
        if let Workshop::Unread(read) = self {
            *self = match read.take().map(|read| read()) {
                Some(Ok(tokenizer)) => Workshop::Open(Box::new(Tools {
                    tokenizer,
                    vocabulary: None,
                    breakers: Default::default(),
                })),
                Some(Err(error)) => Workshop::Failed(error),
                None => Workshop::Failed("it was read before".to_owned()),
            };
        }
        match self {
            Workshop::Open(tools) => tools.make(submit),
            Workshop::Failed(error) => Err(GrammarError::Vocabulary(error.clone())),
            Workshop::Unread(_) => unreachable!("it was read just now"),
        }
    }
}

impl Tools {
    fn make(&mut self, submit: &Submit) -> Result<Sampler, GrammarError> {
        let sampling = &submit.sampling;
        let mut sampler = plain(submit);
        if sampling.dry_multiplier != 0.0 {
            let texts = &sampling.dry_sequence_breakers;
            if self.breakers.0 != *texts {
                let made = Breakers::new(texts, &self.tokenizer);
                self.breakers = (texts.clone(), Arc::new(made));
            }
            sampler = sampler.with_breakers(Arc::clone(&self.breakers.1));
        }
        if let Some(grammar) = &sampling.grammar {
            let vocabulary = self.vocabulary()?;
            let constraint = Constraint::new(grammar, &vocabulary, &submit.carried.answer)?;
            sampler = sampler.with_constraint(Some(constraint));
        }
        Ok(sampler)
    }

    fn vocabulary(&mut self) -> Result<Arc<Vocabulary>, GrammarError> {
        if let Some(vocabulary) = &self.vocabulary {
            return Ok(Arc::clone(vocabulary));
        }
        let made = Arc::new(Vocabulary::new(&self.tokenizer)?);
        self.vocabulary = Some(Arc::clone(&made));
        Ok(made)
    }
}
