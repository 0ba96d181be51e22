//! Whole denoising steps on a card: ids go there, and tokens come back. When the same step comes again, with other ids, it is
//! recorded as a graph and from then on repeated as one piece of work.

use std::ops::Range;
use std::sync::Arc;

use super::OnCard;
use crate::error::{Error, Result};
use crate::kernels::cuda::sampling::{
    CHOICE, Choosing, PLACE, Sampling, choose_begin, choose_end, choose_update, sample_codes,
};
use crate::kernels::cuda::{Gpu, Graph, Memory, Part, Staged};
use crate::memory::{try_collect, try_push, try_with_capacity};
use crate::model::{Buffer, Observers, SequenceRequest, Source, Transformer, parts_of};
use crate::sampler::Draw;
use crate::sampler::choose::PART;

/// Ids whose logits are looked at together.
const WIDTH: usize = 16 * PART;
/// Graphs that are kept: a generation has few different steps at a time.
const GRAPHS: usize = 16;
const WHAT: &str = "the sampling of a step";

/// What a step is, but for ids, random numbers and forbidden ids: what a graph is recorded for.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Step {
    pub kind: Kind,
    /// Tokens of each sequence, and how many of its rows are wanted.
    pub sequences: Vec<(usize, usize)>,
    pub vocab: Range<u32>,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    /// Of the wanted rows of the first sequence; those of a second one are unconditional.
    Choose { rule: Choosing, ranges: usize },
    /// Of the wanted rows of the first half of the sequences, several times; those of the other half, where something
    /// guides, are unconditional.
    Sample { rule: Sampling, copies: usize },
}

impl Step {
    pub fn new(kind: Kind, batch: &[SequenceRequest]) -> Result<Self> {
        let sequences = try_collect(batch.iter().map(|s| (s.ids.len(), s.rows.len())), WHAT)?;
        let vocab = batch.first().map_or(0..0, |s| s.vocab.clone());
        match batch.iter().all(|s| s.vocab == vocab) {
            true => Ok(Step { kind, sequences, vocab }),
            false => Err(Error::Internal("sequences of a step that want different ids".to_owned())),
        }
    }

    /// How many of the sequences are not unconditional, and how often their rows are drawn.
    pub fn own(&self) -> (usize, usize) {
        let count = self.sequences.len();
        match self.kind {
            Kind::Choose { .. } => (count.min(1), 1),
            Kind::Sample { rule, copies } => (if rule.guidance > 0.0 { count / 2 } else { count }, copies),
        }
    }

    /// Wanted rows of all sequences, and of those that are not unconditional.
    fn rows(&self) -> (usize, usize) {
        let rows = |sequences: &[(usize, usize)]| sequences.iter().map(|s| s.1).sum();
        (rows(&self.sequences), rows(&self.sequences[..self.own().0]))
    }

    /// Rows for which something is drawn.
    fn draws(&self) -> usize {
        self.own().1 * self.rows().1
    }

    /// Ids whose logits are there at a time.
    fn width(&self) -> usize {
        match self.kind {
            Kind::Choose { .. } => WIDTH.min(self.vocab.len()).max(1),
            Kind::Sample { .. } => self.vocab.len(),
        }
    }
}

/// A step with what it runs on.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub transformer: &'a Transformer,
    pub step: &'a Step,
    /// It was staged.
    pub batch: &'a [SequenceRequest<'a>],
}

/// Memory of steps, and what was recorded with it.
#[derive(Default)]
pub(super) struct Steps {
    /// before `room`, which they work on
    graphs: Vec<(Step, Graph)>,
    room: Option<Room>,
    /// [`Cuda::moves`](crate::model::Cuda::moves) of the passes that are in `seen` and `graphs`
    moves: u64,
    /// that have run once since memory last moved
    seen: Vec<Step>,
}

/// Numbers of logits, probabilities, choices, draws and forbidden ranges that a step needs room for.
#[derive(Clone, Copy, Default)]
struct Sizes([usize; 5]);

impl Sizes {
    fn of(step: &Step) -> Self {
        let (rows, own) = step.rows();
        let (logits, draws) = (rows * step.width(), step.draws());
        Sizes(match step.kind {
            Kind::Choose { ranges, .. } => [logits, 0, draws, draws, ranges],
            // what is drawn once takes the place of its logits
            Kind::Sample { copies, .. } => [logits, if copies > 1 { own * step.width() } else { 0 }, 0, draws, 0],
        })
    }

    fn most(self, other: Sizes) -> Self {
        Sizes(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }
}

struct Room {
    sizes: Sizes,
    logits: Memory<f32>,
    probabilities: Memory<f32>,
    choices: Memory<u8>,
    places: Staged<u32>,
    forbidden: Staged<u32>,
    ids: Staged<i32>,
    probability: Staged<f64>,
    codes: Staged<u32>,
    confidence: Staged<f32>,
}

impl Steps {
    /// Makes room for a step. What was recorded with memory that has moved is forgotten, be it this or that of passes, which
    /// have `moves` by now.
    pub fn reserve(&mut self, gpu: &Arc<Gpu>, step: &Step, moves: u64) -> Result<()> {
        let had = self.room.as_ref().map_or(Sizes::default(), |room| room.sizes);
        let sizes = had.most(Sizes::of(step));
        let fits = self.room.is_some() && sizes.0 == had.0;
        if !fits || moves != self.moves {
            (self.seen, self.graphs, self.moves) = (Vec::new(), Vec::new(), moves);
        }
        if fits {
            return Ok(());
        }
        self.room = None; // give back before asking again
        let [logits, probabilities, choices, draws, ranges] = sizes.0;
        self.room = Some(Room {
            sizes,
            logits: Memory::new(gpu, logits, WHAT)?,
            probabilities: Memory::new(gpu, probabilities, WHAT)?,
            choices: Memory::new(gpu, choices.saturating_mul(CHOICE), WHAT)?,
            places: Staged::new(gpu, draws.saturating_mul(PLACE), WHAT)?,
            forbidden: Staged::new(gpu, ranges.saturating_mul(2), WHAT)?,
            ids: Staged::new(gpu, draws, WHAT)?,
            probability: Staged::new(gpu, draws, WHAT)?,
            codes: Staged::new(gpu, draws, WHAT)?,
            confidence: Staged::new(gpu, draws, WHAT)?,
        });
        Ok(())
    }

    fn room(&mut self) -> Result<&mut Room> {
        self.room.as_mut().ok_or_else(|| Error::Internal("a step on a graphics card without room".to_owned()))
    }

    /// Says where the random numbers of each row that is drawn come from: of the rows that only fill up, nowhere.
    pub fn set_draws(&mut self, seed: u64, draws: impl Iterator<Item = Option<Draw>>) -> Result<()> {
        let place = |draw: Option<Draw>| {
            let Some(Draw { sequence, step, position, .. }) = draw else { return [0; PLACE] };
            let key = seed.wrapping_add(sequence as u64);
            [key as u32, (key >> 32) as u32, step as u32, position as u32]
        };
        self.room()?.places.set(draws.flat_map(place))
    }

    pub fn set_forbidden(&mut self, ranges: &[Range<u32>]) -> Result<()> {
        self.room()?.forbidden.set(ranges.iter().flat_map(|range| [range.start, range.end]))
    }

    /// Runs a step and waits for it. Where a model is on the card as a whole it may be `recorded`.
    pub fn run<'a>(&mut self, backend: &mut impl OnCard<'a>, pass: Pass, recorded: bool) -> Result<()> {
        let Steps { room: Some(room), seen, graphs, .. } = self else { return self.room().map(drop) };
        let step = pass.step;
        if let Some((_, graph)) = graphs.iter().find(|(other, _)| other == step) {
            backend.cuda().queue().repeat(graph)?;
        } else if seen.contains(step) {
            // kernels are there and memory stays: nothing but queueing is left to do
            let queue = backend.cuda().shared_queue();
            match queue.record(|| room.queue(backend, pass)) {
                Ok(graph) => {
                    queue.repeat(&graph)?;
                    keep(graphs, (step.clone(), graph))?;
                }
                // a graph takes memory, and saves no more than time
                Err(Error::OutOfMemory { .. }) => room.queue(backend, pass)?,
                Err(error) => return Err(error),
            }
        } else {
            room.queue(backend, pass)?;
            if recorded {
                keep(seen, step.clone())?;
            }
        }
        backend.cuda().queue().wait()?;
        backend.check()
    }

    /// The candidates of the last step: ids with probabilities, see [`choose_end`].
    pub fn candidates(&self) -> impl Iterator<Item = (i32, f64)> {
        let room = self.room.iter();
        room.flat_map(|room| room.ids.host().iter().copied().zip(room.probability.host().iter().copied()))
    }

    /// The codes of the last step with their confidences, see [`sample_codes`].
    pub fn codes(&self) -> impl Iterator<Item = (u32, f32)> {
        let room = self.room.iter();
        room.flat_map(|room| room.codes.host().iter().copied().zip(room.confidence.host().iter().copied()))
    }
}

impl Room {
    /// Queues a pass and what follows it.
    fn queue<'a>(&mut self, backend: &mut impl OnCard<'a>, pass: Pass) -> Result<()> {
        let Pass { transformer, step, batch } = pass;
        transformer.hidden(backend, batch, &mut Observers::default())?;
        let rows = backend.gather(batch, 0..batch.len())?;
        let output = &transformer.weights.output;
        backend.input(Source::Plain(Buffer::Q), rows, &[output], false)?;
        let (own, draws) = (step.rows().1, step.draws());
        self.places.send(backend.cuda().queue(), draws * PLACE)?;
        match step.kind {
            Kind::Choose { rule, ranges } => {
                self.forbidden.send(backend.cuda().queue(), 2 * ranges)?;
                let choices = self.choices.part(0..own * CHOICE);
                choose_begin(backend.cuda().queue(), choices)?;
                for ids in parts_of(step.vocab.clone(), step.width()) {
                    let logits = self.logits.part(0..rows * ids.len());
                    backend.cuda().logits_to(output, ids.clone(), logits)?;
                    let split = halves(logits, own * ids.len());
                    let forbidden = self.forbidden.part(0..2 * ranges);
                    let places = self.places.part(0..own * PLACE);
                    choose_update(backend.cuda().queue(), split, ids.start, forbidden, rule, places, choices)?;
                }
                let queue = backend.cuda().queue();
                choose_end(queue, choices, self.ids.part(0..own), self.probability.part(0..own))?;
                self.ids.fetch(queue, own)?;
                self.probability.fetch(queue, own)
            }
            Kind::Sample { rule, copies } => {
                let logits = self.logits.part(0..rows * step.width());
                backend.cuda().logits_to(output, step.vocab.clone(), logits)?;
                let (split, queue) = (halves(logits, own * step.width()), backend.cuda().queue());
                let probabilities = if copies > 1 { self.probabilities.part(0..own * step.width()) } else { split.0 };
                for copy in 0..copies {
                    let at = copy * own..(copy + 1) * own;
                    let places = self.places.part(at.start * PLACE..at.end * PLACE);
                    let (codes, confidence) = (self.codes.part(at.clone()), self.confidence.part(at));
                    sample_codes(queue, split, rule, places, probabilities, codes, confidence)?;
                }
                self.codes.fetch(queue, draws)?;
                self.confidence.fetch(queue, draws)
            }
        }
    }
}

/// Puts an item behind the others, and forgets the first where there are many.
fn keep<T>(list: &mut Vec<T>, item: T) -> Result<()> {
    if list.len() == GRAPHS {
        list.remove(0);
    }
    try_push(list, item, WHAT)
}

/// Logits of rows.
type Rows<'a> = Part<'a, f32>;

/// The logits of rows that are drawn, and the unconditional ones behind them if there are any.
fn halves(logits: Rows<'_>, own: usize) -> (Rows<'_>, Option<Rows<'_>>) {
    let free = logits.part(own..logits.len());
    (logits.part(0..own), (!free.is_empty()).then_some(free))
}

/// How many rows are made of the wanted ones of a sequence, so that steps which differ by a few are the same to a graph. There
/// are no more than `shortest`, the tokens of the shortest sequence: those that guide each other have as many.
pub(super) fn filled_len(rows: usize, shortest: usize) -> usize {
    let unit = if rows < 256 { 16 } else { 64 };
    rows.next_multiple_of(unit).min(shortest).max(rows)
}

/// The wanted rows of a sequence, and others to fill them up to `target`.
pub(super) fn filled(rows: &[usize], target: usize) -> Result<Vec<usize>> {
    let mut all = try_with_capacity(target, WHAT)?;
    all.extend_from_slice(rows);
    let mut wanted = rows.iter().peekable();
    let others = (0..).filter(|row| wanted.next_if(|next| *next == row).is_none());
    all.extend(others.take(target - rows.len())); // there is room
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_rows_are_filled_up_with_others() {
        assert_eq!(filled(&[2, 5], 6).unwrap(), [2, 5, 0, 1, 3, 4]);
        let cases = [(vec![0], 3), (vec![1, 2], 3), ((0..17).collect(), 20), ((0..300).collect(), 400), (vec![], 9)];
        for (rows, len) in cases {
            let target = filled_len(rows.len(), len);
            let all = filled(&rows, target).unwrap();
            let mut sorted = all.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!((all.len(), sorted.len(), &all[..rows.len()]), (target, target, &rows[..]));
            assert!(sorted.iter().all(|&row| row < len) && (target.is_multiple_of(16) || target == len));
        }
    }
}
