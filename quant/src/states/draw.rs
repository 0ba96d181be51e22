//! States of a picture, whose codes the sampler masks again until all are settled.

use mmada::image::RgbImage;
use mmada::kernels::Kernels;
use mmada::parallel::{Exec, Threads};
use mmada::sampler::image::{Rule, Sampled, Temperature, cut_off, keep_masked, sample, score};
use mmada::sampler::noise::{Draw, Noise, Philox, Stage};
use mmada::{DrawFromIds, Error, Generation, ImageOptions, Result, prompt};

use super::{Maker, Pass, State, masked_among, nearest};

/// States with about these mask ratios: of the given picture, or of one that the model draws itself.
pub(super) fn states(maker: &Maker, ratios: &[f64]) -> Result<Vec<State>> {
    let canvas = Canvas::new(maker, &maker.sample.prompt)?;
    match &maker.sample.picture {
        Some(picture) => canvas.given(&maker.codes(picture)?, ratios),
        None => canvas.own(ratios),
    }
}

/// The picture that the model draws from a text.
pub(super) fn picture(maker: &Maker, text: &str) -> Result<RgbImage> {
    let mut generation = Canvas::new(maker, text)?.generation;
    while !maker.step(&mut generation)?.done {}
    generation.image(0)
}

/// The sequences of a drawing.
struct Canvas<'a> {
    maker: &'a Maker<'a>,
    options: ImageOptions,
    generation: Generation,
    /// All codes masked. `masked` are the places of the codes, in raster order.
    conditional: Pass,
    /// `None` without guidance.
    unconditional: Option<Pass>,
}

impl<'a> Canvas<'a> {
    fn new(maker: &'a Maker, text: &str) -> Result<Self> {
        let model = maker.context.model();
        let (tokenizer, vocabulary, side) = (model.tokenizer()?, model.vocabulary(), model.image_size());
        let (_, mut options) = model.draw_options(false);
        options.seed = maker.seed;
        let prompt = |text| prompt::draw(tokenizer, vocabulary, text, options.max_text_len);
        let (wish, empty) = (prompt(text)?.ids, prompt("")?.ids);
        let begin = |prompt: &[u32]| {
            let (prompt, unconditional) = (prompt.to_vec(), empty.clone());
            let image = options.clone();
            maker.context.draw_from_ids(DrawFromIds {
                prompt,
                unconditional,
                width: side,
                height: side,
                count: 1,
                image,
            })
        };
        let blank = |generation: &Generation| {
            let ids = generation.sequence(0).unwrap_or_default().to_vec();
            let masked = masked_among(&ids, 0..ids.len(), vocabulary.mask);
            Pass { ids, masked }
        };
        let generation = begin(&wish)?;
        let conditional = blank(&generation);
        let unconditional = if options.guidance > 0.0 { Some(blank(&begin(&empty)?)) } else { None };
        Ok(Canvas { maker, options, generation, conditional, unconditional })
    }

    fn tokens(&self) -> usize {
        self.conditional.masked.len()
    }

    /// The state in which the codes of `known` stand in the picture, `codes` being ids in raster order.
    fn state(&self, codes: &[u32], known: impl Fn(usize) -> bool, commit: usize) -> State {
        let mask = self.maker.context.model().vocabulary().mask;
        let fill = |blank: &Pass| {
            let mut ids = blank.ids.clone();
            for (raster, (&place, &code)) in blank.masked.iter().zip(codes).enumerate() {
                if known(raster) {
                    ids[place] = code;
                }
            }
            let masked = masked_among(&ids, blank.masked.iter().copied(), mask);
            Pass { ids, masked }
        };
        let Pass { ids, masked } = fill(&self.conditional);
        let truth = (0..codes.len()).filter(|&raster| !known(raster)).map(|raster| codes[raster]).collect();
        State {
            task: self.maker.sample.task,
            ratio: masked.len() as f32 / self.tokens().max(1) as f32,
            ids,
            masked,
            vocab: self.maker.context.model().vocabulary().image_ids(),
            truth,
            commit,
            unconditional: self.unconditional.as_ref().map(fill),
            guidance: self.options.guidance,
            sample: 0,
        }
    }

    /// Draws, and picks states on the way.
    fn own(mut self, ratios: &[f64]) -> Result<Vec<State>> {
        let vocabulary = self.maker.context.model().vocabulary();
        // Which codes were masked before each step, and how many that step settled.
        let mut moments: Vec<(Vec<bool>, usize)> = Vec::new();
        loop {
            let ids = self.generation.sequence(0).unwrap_or_default();
            let masked =
                self.conditional.masked.iter().map(|&place| ids.get(place) == Some(&vocabulary.mask)).collect();
            let step = self.maker.step(&mut self.generation)?;
            if !step.changed.is_empty() {
                moments.push((masked, step.changed.len()));
            }
            if step.done {
                break;
            }
        }
        let codes: Vec<u32> = self.generation.codes(0)?.iter().map(|code| vocabulary.code_offset + code).collect();
        let share = |(masked, _): &(Vec<bool>, usize)| {
            masked.iter().filter(|&&masked| masked).count() as f64 / masked.len().max(1) as f64
        };
        let state = |&wanted: &f64| {
            let (masked, commit) = nearest(&moments, wanted, share)?;
            Some(self.state(&codes, |raster| !masked[raster], *commit))
        };
        Ok(ratios.iter().filter_map(state).collect())
    }

    /// Masks what the steps of the sampler would have left masked of a picture, `codes` being the tokenizer's.
    fn given(self, codes: &[u32], ratios: &[f64]) -> Result<Vec<State>> {
        let (tokens, steps) = (self.tokens(), self.options.steps);
        if codes.len() != tokens {
            return Err(Error::Internal(format!("a picture of {tokens} tokens has {} codes", codes.len())));
        }
        let offset = self.maker.context.model().vocabulary().code_offset;
        let codes: Vec<u32> = codes.iter().map(|code| offset + code).collect();
        let confidence = self.confidence()?;
        // The steps that settle any codes, with the masks before and after them. A last mask waits for the last step.
        let mut counts = Vec::with_capacity(steps);
        let mut unknown = tokens;
        for step in 0..steps {
            let last = step + 1 == steps;
            let keep = if last { 0 } else { keep_masked(self.options.schedule, tokens, unknown, step, steps) };
            if keep < unknown {
                counts.push((step, unknown, keep));
            }
            unknown = keep;
        }
        let state = |&wanted: &f64| {
            let &(step, before, after) = nearest(&counts, wanted, |&(_, before, _)| before as f64 / tokens as f64)?;
            let known = self.known(&confidence, step, before);
            Some(self.state(&codes, |raster| known[raster], before - after))
        };
        Ok(ratios.iter().filter_map(state).collect())
    }

    /// How sure the sampler is of the code that it would choose at each place of an empty picture.
    fn confidence(&self) -> Result<Vec<Sampled>> {
        let blank = self.state(&vec![0; self.tokens()], |_| false, 0);
        let mut passes = self.maker.logits(&blank.requests())?.into_iter();
        let (mut logits, unconditional) = (passes.next().unwrap_or_default(), passes.next().unwrap_or_default());
        let draws: Vec<Draw> = (0..self.tokens()).map(|raster| Draw::new(Stage::Image, 0, raster)).collect();
        let rule = Rule {
            guidance: self.options.guidance,
            confidence: self.options.confidence,
            noise: &Philox::new(self.maker.seed),
        };
        let threads = Threads::new(1)?;
        let exec = Exec::new(&threads, Kernels::best(), None);
        let mut sampled = Vec::with_capacity(draws.len());
        sample(&exec, &mut logits, &unconditional, blank.vocab.len(), &draws, rule, &mut sampled)?;
        Ok(sampled)
    }

    /// Which codes are known before a step that begins with `masks` masks: of all, those that score best, with the
    /// noise of the step that decided it.
    fn known(&self, confidence: &[Sampled], step: usize, masks: usize) -> Vec<bool> {
        let Some(last) = step.checked_sub(1) else { return vec![false; confidence.len()] };
        let mut temperature = Temperature::new(self.options.temperature);
        let temperature = (0..=last).map(|step| temperature.at(step, self.options.steps)).last().unwrap_or(0.0);
        let noise = Philox::new(self.maker.seed);
        let draw = |raster| Draw::new(Stage::Image, last, raster);
        let scores = confidence.iter().enumerate();
        let scores: Vec<f32> = scores
            .map(|(raster, sampled)| score(sampled.confidence, temperature, noise.gumbel_uniform(draw(raster))))
            .collect();
        let cut = cut_off(&mut scores.clone(), masks);
        scores.iter().map(|&score| score >= cut).collect()
    }
}
