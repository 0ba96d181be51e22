//! How far quantized models are from the model that they were made of: the logits of both on real states of the
//! sampler, made with the reference ([`crate::states`]), and whole drawings with the same random numbers.
//!
//! Memory: the reference's logits are kept for a few states at a time, so that files that together do not fit in memory
//! take turns rarely.

mod font;
mod metrics;
mod plot;
mod report;
mod same;
mod summary;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mmada::sampler::image::guide;
use mmada::{Compute, Context, ContextOptions, DrawRequest, Error, Model, Result, RgbImage};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::disk::keep_inputs;
use crate::report::Progress;
use crate::states::{Sample, State, StateOptions, Task, own_samples, read_samples, sample_states};
use crate::write::thread_pool;

use metrics::{Committed, Position};
pub use report::{Compared, Comparison, Drawings, ModelFile, RatioSummary, TaskSummary, View};
pub use summary::Summary;
use summary::{RATIOS, Tally, quarter};

/// Bytes of the reference's logits that are kept at a time, but for a state that has more.
const KEPT_BYTES: usize = 512 << 20;

/// What to compare, and on what.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The model that is right by definition.
    pub reference: PathBuf,
    /// The models that are measured against it.
    pub models: Vec<PathBuf>,
    /// Data files as [`read_samples`] reads them; none: what the reference writes and draws by itself.
    pub data: Vec<PathBuf>,
    /// How many states every sample gives.
    pub per_sample: usize,
    /// Of all random numbers: the same seed gives the same result.
    pub seed: u64,
    /// How many of the data's pictures to draw from beginning to end with every model.
    pub drawings: usize,
    /// Where the caller is going to write [`plot`]: what cannot be written, or would replace what is compared, is refused
    /// before the work.
    pub plot: Option<PathBuf>,
    /// How the models compute. The reference is always exact.
    pub compute: Compute,
    /// Threads; 0 means one per core. Results do not depend on it.
    pub threads: usize,
    /// Set it to stop.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl CompareOptions {
    /// Everything else at its default.
    pub fn new(reference: impl Into<PathBuf>, models: Vec<PathBuf>) -> Self {
        CompareOptions {
            reference: reference.into(),
            models,
            data: vec![],
            per_sample: StateOptions::default().per_sample,
            seed: 0,
            drawings: 2,
            plot: None,
            compute: Compute::Exact,
            threads: 0,
            cancel: None,
        }
    }

    /// An error once the caller has cancelled.
    fn check(&self) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Runs every model on the same states; the reference with exact arithmetic ([`Compute::Exact`]).
///
/// # Errors
/// One sentence that names the file at fault: a model that cannot be opened, is of another shape or vocabulary than the
/// reference or gives logits that are not finite; data that cannot be read; a plot that cannot be written. `Cancelled` after `options.cancel` was set.
pub fn compare(options: &CompareOptions, progress: &mut dyn FnMut(Progress)) -> Result<Comparison> {
    let started = Instant::now();
    if options.models.is_empty() {
        return Err(Error::invalid("there is no model to compare to the reference"));
    }
    options.plot.as_deref().map_or(Ok(()), plot::check)?;
    let reference = open(&options.reference, options.threads, Compute::Exact)?;
    let mut models = Vec::new();
    for path in &options.models {
        let context = open(path, options.threads, options.compute)?;
        same::check(reference.model(), context.model())?;
        models.push(context);
    }
    let run = Run { options, reference: &reference, models: &models, pool: thread_pool(options.threads)? };
    let samples = match options.data.as_slice() {
        [] => own_samples(reference.model()),
        files => read_samples(files)?,
    };
    if let Some(plot) = &options.plot {
        let files = [&options.reference].into_iter().chain(&options.models).chain(&options.data);
        keep_inputs(plot, files.map(PathBuf::as_path).chain(samples.iter().filter_map(Sample::picture_file)))?;
    }
    let states = run.states(&samples, progress)?;
    let tallies = run.measure(&states, progress)?;
    let drawings = run.drawings(&samples, progress)?;
    let mut compared = Vec::new();
    for ((path, tally), drawings) in options.models.iter().zip(tallies).zip(drawings) {
        compared.push(tally.compared(ModelFile::of(path)?, drawings));
    }
    Ok(Comparison {
        reference: ModelFile::of(&options.reference)?,
        models: compared,
        data: options.data.clone(),
        samples: samples.len(),
        states: states.len(),
        positions: states.iter().map(|state| state.masked.len() as u64).sum(),
        per_sample: options.per_sample,
        seed: options.seed,
        compute: options.compute,
        seconds: started.elapsed(),
    })
}

/// Size against divergence of all models, as a picture.
pub fn plot(comparison: &Comparison) -> RgbImage {
    let paths: Vec<&Path> = comparison.models.iter().map(|model| model.file.path.as_path()).collect();
    let marks = comparison.models.iter().zip(plot::names(&paths));
    let marks = marks.map(|(model, name)| plot::Mark { name, bytes: model.file.bytes, kl: model.all.kl_mean });
    plot::draw(&comparison.reference.name(), &marks.collect::<Vec<_>>())
}

fn open(path: &Path, threads: usize, compute: Compute) -> Result<Context> {
    let options = ContextOptions { threads, compute, ..ContextOptions::default() };
    Context::new(&Model::open(path)?, options)
}

struct Run<'a> {
    options: &'a CompareOptions,
    reference: &'a Context,
    models: &'a [Context],
    /// For what is computed of logits.
    pool: ThreadPool,
}

impl Run<'_> {
    fn states(&self, samples: &[Sample], progress: &mut dyn FnMut(Progress)) -> Result<Vec<State>> {
        let CompareOptions { per_sample, seed, cancel, .. } = self.options.clone();
        let options = StateOptions { per_sample, seed, cancel };
        let mut states = Vec::new();
        for (index, sample) in samples.iter().enumerate() {
            self.options.check()?;
            progress(Progress::Steps { what: "making states", done: index, total: samples.len() });
            states.extend(sample_states(self.reference, sample, index, &options)?);
        }
        Ok(states)
    }

    /// What is seen of each model.
    fn measure(&self, states: &[State], progress: &mut dyn FnMut(Progress)) -> Result<Vec<Tallies>> {
        let total = states.len() * (1 + self.models.len());
        let mut done = 0;
        let mut tick = || {
            self.options.check()?;
            progress(Progress::Steps { what: "comparing logits", done, total });
            done += 1;
            Ok::<_, Error>(())
        };
        let mut tallies = vec![Tallies::default(); self.models.len()];
        for group in groups(states, KEPT_BYTES) {
            let mut kept = Vec::new();
            for state in &states[group.clone()] {
                tick()?;
                kept.push(views(self.reference, state)?);
            }
            for (context, tallies) in self.models.iter().zip(&mut tallies) {
                for (state, reference) in states[group.clone()].iter().zip(&kept) {
                    tick()?;
                    let model = views(context, state)?;
                    for ((view, p), (_, q)) in reference.iter().zip(&model) {
                        let positions = self.positions(state, p, q).ok_or_else(|| not_finite(context))?;
                        tallies.add(state, *view, &positions);
                    }
                }
            }
        }
        Ok(tallies)
    }

    fn positions(&self, state: &State, reference: &[f32], model: &[f32]) -> Option<Vec<Position>> {
        let width = state.vocab.len().max(1);
        let position = |row: usize| {
            let at = row * width..(row + 1) * width;
            let truth = state.truth.get(row).and_then(|id| id.checked_sub(state.vocab.start));
            Position::of(reference.get(at.clone())?, model.get(at)?, truth.map(|at| at as usize))
        };
        self.pool.install(|| (0..state.masked.len()).into_par_iter().map(position).collect())
    }

    /// Of each model, how much of its drawings is as the reference draws it.
    fn drawings(&self, samples: &[Sample], progress: &mut dyn FnMut(Progress)) -> Result<Vec<Option<Drawings>>> {
        let draws = samples.iter().filter(|sample| sample.task == Task::Draw);
        let prompts: Vec<&str> = draws.map(|sample| sample.prompt.as_str()).take(self.options.drawings).collect();
        if prompts.is_empty() {
            return Ok(vec![None; self.models.len()]);
        }
        let total = prompts.len() * (1 + self.models.len());
        let mut done = 0;
        let mut draw_all = |context: &Context| {
            let draw = |(n, prompt): (usize, &&str)| {
                progress(Progress::Steps { what: "drawing", done, total });
                done += 1;
                self.draw(context, prompt, self.options.seed.wrapping_add(n as u64))
            };
            prompts.iter().enumerate().map(draw).collect::<Result<Vec<_>>>()
        };
        let right = draw_all(self.reference)?;
        let compare = |context: &Context| {
            let codes = draw_all(context)?;
            let pairs = || right.iter().flatten().zip(codes.iter().flatten());
            let equal = pairs().filter(|(a, b)| a == b).count() as u64;
            Ok(Some(Drawings { pictures: prompts.len() as u64, codes: pairs().count() as u64, equal }))
        };
        self.models.iter().map(compare).collect()
    }

    /// The codes of a picture, drawn as the reference recommends.
    fn draw(&self, context: &Context, prompt: &str, seed: u64) -> Result<Vec<u32>> {
        let model = self.reference.model();
        let (text, mut image) = model.draw_options(false);
        image.seed = seed;
        let side = model.image_size();
        let request =
            DrawRequest { prompt: prompt.to_owned(), think: false, width: side, height: side, count: 1, text, image };
        let mut generation = context.draw(request)?;
        loop {
            self.options.check()?;
            if generation.step()?.done {
                return Ok(generation.codes(0)?.to_vec());
            }
        }
    }
}

/// The logits of a state, [masked, vocab] each: as the sampler chooses by them, and where it guides also those of both
/// passes. The mask token, which it never chooses, is at -infinity.
fn views(context: &Context, state: &State) -> Result<Vec<(View, Vec<f32>)>> {
    let mut passes = context.logits(&state.requests())?;
    if passes.iter().flatten().any(|logit| !logit.is_finite()) {
        return Err(not_finite(context));
    }
    let mut views = match passes.as_slice() {
        [conditional, unconditional] => {
            let mut guided = conditional.clone();
            guide(&mut guided, unconditional, state.guidance);
            vec![(View::Sampler, guided)]
        }
        _ => vec![],
    };
    let names = if views.is_empty() { [View::Sampler].iter() } else { [View::Conditional, View::Unconditional].iter() };
    views.extend(names.copied().zip(passes.drain(..)));
    let mask = context.model().vocabulary().mask;
    if state.vocab.contains(&mask) {
        let column = (mask - state.vocab.start) as usize;
        for (_, logits) in &mut views {
            logits.iter_mut().skip(column).step_by(state.vocab.len()).for_each(|logit| *logit = f32::NEG_INFINITY);
        }
    }
    Ok(views)
}

fn not_finite(context: &Context) -> Error {
    let reason = "the model's logits are not finite numbers (are its weights damaged?)";
    Error::format(context.model().file(), reason)
}

/// Ranges of states whose logits fit in so many bytes, or that are one state.
fn groups(states: &[State], bytes: usize) -> Vec<Range<usize>> {
    let size = |state: &State| {
        let views = if state.unconditional.is_some() { 3 } else { 1 };
        state.masked.len().saturating_mul(state.vocab.len()).saturating_mul(views * size_of::<f32>())
    };
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut filled = 0usize;
    for (at, state) in states.iter().enumerate() {
        let more = filled.saturating_add(size(state));
        match groups.last_mut() {
            Some(group) if more <= bytes => {
                group.end = at + 1;
                filled = more;
            }
            _ => {
                groups.push(at..at + 1);
                filled = size(state);
            }
        }
    }
    groups
}

/// What was seen of a model, by task, view and mask ratio.
#[derive(Clone, Default)]
struct Tallies {
    cells: Vec<(Task, View, [Tally; RATIOS])>,
}

impl Tallies {
    fn add(&mut self, state: &State, view: View, positions: &[Position]) {
        let committed = Committed::of(positions, state.commit);
        let found = self.cells.iter().position(|(task, v, _)| (*task, *v) == (state.task, view));
        let at = found.unwrap_or_else(|| {
            self.cells.push((state.task, view, Default::default()));
            self.cells.len() - 1
        });
        self.cells[at].2[quarter(state.ratio)].add(positions, committed);
    }

    fn merged<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Tally {
        tallies.into_iter().fold(Tally::default(), |mut sum, tally| {
            sum.merge(tally);
            sum
        })
    }

    fn compared(mut self, file: ModelFile, drawings: Option<Drawings>) -> Compared {
        self.cells.sort_by_key(|(task, view, _)| (*task, *view));
        let tasks = self.cells.iter().map(|(task, view, ratios)| TaskSummary {
            task: *task,
            view: *view,
            all: Self::merged(ratios).summary(),
            ratios: ratios
                .iter()
                .enumerate()
                .filter(|(_, tally)| !tally.is_empty())
                .map(|(n, tally)| RatioSummary {
                    from: n as f64 / RATIOS as f64,
                    to: (n + 1) as f64 / RATIOS as f64,
                    summary: tally.summary(),
                })
                .collect(),
        });
        // The passes of guidance are parts of what the sampler sees, and do not count twice.
        let sampler = self.cells.iter().filter(|(_, view, _)| *view == View::Sampler);
        let all = Self::merged(sampler.flat_map(|(_, _, ratios)| ratios)).summary();
        Compared { file, all, tasks: tasks.collect(), drawings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(masked: usize, vocab: Range<u32>) -> State {
        State {
            task: Task::Chat,
            ratio: 0.5,
            ids: vec![0; masked],
            masked: (0..masked).collect(),
            vocab,
            truth: vec![],
            commit: 1,
            unconditional: None,
            guidance: 0.0,
            sample: 0,
        }
    }

    #[test]
    fn groups_hold_what_fits_and_every_state_once() {
        let states: Vec<State> = [3, 3, 3, 10, 1, 1, 7].map(|masked| state(masked, 5..30)).into();
        // 100 bytes a position
        assert_eq!(groups(&states, 700), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(groups(&states, 0).len(), states.len());
        assert_eq!(groups(&states, usize::MAX).first(), Some(&(0..7)));
        assert!(groups(&[], 5).is_empty());
    }
}
