//! The text stage: an answer, or the description of a reasoned drawing, unmasked block by block.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use ::image::RgbImage;

use super::request::TextOptions;
use super::{Answer, Change, Engine, Slot, Step, reserve};
use crate::error::{Error, Result};
use crate::model::SequenceRequest;
use crate::prompt::{Vocabulary, split_thinking};
use crate::sampler::text::{Candidate, Forbidden, Rule, candidates, commits, most_confident};
use crate::sampler::{Draw, Noise, Philox, Stage};
use crate::tokenizer::Tokenizer;

/// A picture whose codes are not in the sequence yet: encoding it takes long, so it is left to the first step,
/// which can be cancelled.
pub(super) struct Question {
    pub picture: RgbImage,
    pub squash: bool,
    /// Where its codes belong.
    pub place: Range<usize>,
}

pub(super) struct TextStage {
    /// prompt, answer, and what stands behind it
    ids: Vec<u32>,
    /// the same with the prompt masked; empty without guidance
    unconditional: Vec<u32>,
    answer: Range<usize>,
    options: TextOptions,
    mask: u32,
    vocab: Range<u32>,
    forbidden: Forbidden,
    question: Option<Question>,
    /// steps taken
    step: usize,
    done: bool,
    /// tokens of the answer before the first mask
    prefix: usize,
    /// where the answer ends, once that is known: at an end token or before a stop text
    end: Option<usize>,
    /// the answer up to a stop text, once there is one
    stopped: Option<String>,
    slots: Vec<Slot>,
    buffers: Buffers,
}

/// What a step works in; sized at the start.
#[derive(Default)]
struct Buffers {
    rows: Vec<usize>,
    draws: Vec<Draw>,
    /// [rows, vocab], and behind them the unconditional ones
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    chosen: Vec<usize>,
}

impl Buffers {
    fn new(rows: usize, vocab: usize, guided: bool) -> Result<Self> {
        let passes = if guided { 2 } else { 1 };
        let mut buffers = Buffers::default();
        reserve(
            &mut buffers.logits,
            rows.saturating_mul(vocab).saturating_mul(passes),
            "the logits of a block of text",
        )?;
        buffers.rows.reserve_exact(rows);
        buffers.draws.reserve_exact(rows);
        buffers.candidates.reserve_exact(rows);
        buffers.chosen.reserve_exact(rows);
        Ok(buffers)
    }
}

impl TextStage {
    /// `prompt`, then the answer's masks, then `behind`. Lengths and options have been checked.
    pub fn new(
        vocabulary: &Vocabulary,
        prompt: Vec<u32>,
        behind: &[u32],
        question: Option<Question>,
        options: TextOptions,
    ) -> Result<Self> {
        let end = if options.unrestricted { vocabulary.rows } else { vocabulary.text };
        let forbidden = options.forbidden(vocabulary, end)?;
        let mask = vocabulary.mask;
        let answer = prompt.len()..prompt.len() + options.gen_length;
        let mut ids = prompt;
        ids.resize(answer.end, mask);
        ids.extend_from_slice(behind);
        let guided = options.cfg_scale > 0.0;
        let mut unconditional = Vec::new();
        if guided {
            unconditional.clone_from(&ids);
            unconditional[..answer.start].fill(mask);
        }
        // Only an unrestricted run can choose [MASK] itself and so leave masks behind in earlier blocks.
        let rows = if options.unrestricted { options.gen_length } else { options.block_length };
        let buffers = Buffers::new(rows, end as usize, guided)?;
        let slots = vec![Slot::Masked; options.gen_length];
        Ok(TextStage {
            ids,
            unconditional,
            answer,
            mask,
            vocab: 0..end,
            forbidden,
            question,
            step: 0,
            done: false,
            prefix: 0,
            end: None,
            stopped: None,
            slots,
            buffers,
            options,
        })
    }

    pub fn is_done(&self) -> bool {
        self.done
    }
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
    pub fn total_steps(&self) -> usize {
        self.options.steps
    }

    /// One denoising step. Nothing has changed if it fails.
    pub fn step(&mut self, engine: &dyn Engine, cancel: &AtomicBool, noise: Option<&dyn Noise>) -> Result<Step> {
        if self.done {
            return Ok(self.report(Vec::new()));
        }
        let tokenizer = if self.options.stop.is_empty() { None } else { Some(engine.tokenizer()?) };
        self.encode_question(engine, cancel)?;
        let steps_per_block = self.options.steps / self.options.blocks();
        let (block, step_in_block) = (self.step / steps_per_block, self.step % steps_per_block);
        let count = commits(self.options.block_length, step_in_block, steps_per_block);
        let changed = match count {
            0 => Vec::new(), // more steps than tokens: this one has nothing to decide
            _ => self.denoise(engine, cancel, noise, (block + 1) * self.options.block_length, count)?,
        };
        self.step += 1;
        self.advance(engine.vocabulary(), tokenizer);
        self.done = self.step == self.options.steps || self.end.is_some();
        Ok(self.report(changed))
    }

    fn report(&self, changed: Vec<Change>) -> Step {
        Step {
            stage: Stage::Text,
            index: self.step,
            total: self.options.steps,
            changed,
            prefix: self.prefix,
            done: self.done,
        }
    }

    fn encode_question(&mut self, engine: &dyn Engine, cancel: &AtomicBool) -> Result<()> {
        let Some(question) = &self.question else { return Ok(()) };
        let codes = engine.encode_image(cancel, &question.picture, question.squash)?;
        let place = question.place.clone();
        if codes.len() != place.len() {
            let (got, due) = (codes.len(), place.len());
            return Err(Error::Internal(format!("the picture was encoded in {got} codes, {due} were due")));
        }
        for (slot, code) in self.ids[place].iter_mut().zip(codes) {
            let id = engine.vocabulary().image_id(code);
            *slot = id.ok_or_else(|| Error::Internal(format!("the picture was encoded with the code {code}")))?;
        }
        self.question = None;
        Ok(())
    }

    /// Commits the `count` most confident of the masked positions before `end` (counted in the answer).
    fn denoise(
        &mut self,
        engine: &dyn Engine,
        cancel: &AtomicBool,
        noise: Option<&dyn Noise>,
        end: usize,
        count: usize,
    ) -> Result<Vec<Change>> {
        let Buffers { rows, draws, logits, candidates: proposals, chosen } = &mut self.buffers;
        let start = self.answer.start;
        rows.clear();
        rows.extend((start..start + end).filter(|&position| self.ids[position] == self.mask));
        draws.clear();
        draws.extend(rows.iter().map(|&position| Draw::new(Stage::Text, self.step, position - start)));

        let wanted = SequenceRequest { ids: &self.ids, rows, vocab: self.vocab.clone() };
        let own = wanted.logits();
        if self.unconditional.is_empty() {
            logits.resize(own, 0.0);
            engine.logits(cancel, &[wanted], logits)?;
        } else {
            logits.resize(2 * own, 0.0);
            let masked = SequenceRequest { ids: &self.unconditional, ..wanted.clone() };
            engine.logits(cancel, &[wanted, masked], logits)?;
        }
        let (conditional, unconditional) = logits.split_at_mut(own);

        let exec = engine.exec(cancel);
        exec.check()?;
        let philox = Philox::new(self.options.seed);
        let rule = Rule {
            temperature: self.options.temperature,
            remasking: self.options.remasking,
            cfg_scale: self.options.cfg_scale,
            forbidden: &self.forbidden,
            noise: noise.unwrap_or(&philox),
        };
        proposals.clear();
        candidates(&exec, conditional, unconditional, self.vocab.clone(), draws, rule, proposals)?;
        most_confident(proposals, count, chosen);

        let mut changed = Vec::with_capacity(chosen.len());
        for &i in chosen.iter() {
            let (position, id) = (rows[i], proposals[i].id);
            self.ids[position] = id;
            if let Some(slot) = self.unconditional.get_mut(position) {
                *slot = id;
            }
            if id != self.mask {
                self.slots[position - start] = Slot::Token(id);
                changed.push(Change { sequence: 0, position: position - start, id });
            }
        }
        Ok(changed)
    }

    /// Moves the prefix on, and looks whether the answer ends in it.
    fn advance(&mut self, vocabulary: &Vocabulary, tokenizer: Option<&Tokenizer>) {
        let before = self.prefix;
        let answer = &self.ids[self.answer.clone()];
        self.prefix += answer[before..].iter().take_while(|&&id| id != self.mask).count();
        if !self.options.unrestricted {
            let ending = answer[before..self.prefix].iter().position(|&id| vocabulary.is_end(id));
            self.end = ending.map(|i| before + i);
        }
        if let Some(tokenizer) = tokenizer.filter(|_| self.prefix > before) {
            self.look_for_stop(vocabulary, tokenizer);
        }
    }

    fn look_for_stop(&mut self, vocabulary: &Vocabulary, tokenizer: &Tokenizer) {
        let ids = self.visible();
        let mut text = decode(vocabulary, tokenizer, ids);
        let Some(cut) = self.options.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() else { return };
        // The ids of the answer are those whose text is before the cut entirely.
        let whole = (0..=ids.len()).rev().find(|&n| decode(vocabulary, tokenizer, &ids[..n]).len() <= cut);
        self.end = Some(whole.unwrap_or(0));
        text.truncate(cut);
        self.stopped = Some(text);
    }

    /// The committed ids of the answer, as far as they count.
    fn visible(&self) -> &[u32] {
        let answer = &self.ids[self.answer.clone()];
        match self.end {
            Some(end) => &answer[..end],
            None if self.done => answer,
            None => &answer[..self.prefix],
        }
    }

    /// The answer so far.
    pub fn answer(&self, engine: &dyn Engine) -> Result<Answer> {
        let raw = match &self.stopped {
            Some(text) => text.clone(),
            None => decode(engine.vocabulary(), engine.tokenizer()?, self.visible()),
        };
        let (thinking, answer) = split_thinking(&raw);
        Ok(Answer { raw, thinking, answer, ids: self.visible().to_vec() })
    }

    /// The ids of the whole sequence before `end`, with everything in the answer and behind it replaced by eos from
    /// the first end token, or the end of what counts, on.
    pub fn described(&self, vocabulary: &Vocabulary, end: usize) -> Vec<u32> {
        let mut ids = self.ids[..end].to_vec();
        let region = &mut ids[self.answer.start..];
        let ending = region.iter().position(|&id| vocabulary.is_end(id)).unwrap_or(region.len());
        let ending = self.end.map_or(ending, |end| end.min(ending));
        region[ending..].fill(vocabulary.eos);
        ids
    }
}

/// The text of ids without special tokens. Ids that are no text (an unrestricted run may have chosen some) have none.
fn decode(vocabulary: &Vocabulary, tokenizer: &Tokenizer, ids: &[u32]) -> String {
    if ids.iter().all(|&id| id < vocabulary.text) {
        return tokenizer.decode(ids, true);
    }
    let text: Vec<u32> = ids.iter().copied().filter(|&id| id < vocabulary.text).collect();
    tokenizer.decode(&text, true)
}
