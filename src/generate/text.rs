//! The text stage: an answer, or the description of a reasoned drawing, unmasked block by block.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use ::image::RgbImage;

use super::engine::Choosing;
use super::request::TextOptions;
use super::{Answer, Change, Engine, Slot, Step};
use crate::error::{Error, Result};
use crate::memory::{Charge, try_collect, try_copy, try_reserve, try_string, try_with_capacity};
use crate::model::SequenceRequest;
use crate::prompt::{Vocabulary, split_thinking};
use crate::sampler::choose::{Candidate, Choice, Rule, SLICE};
use crate::sampler::text::{Forbidden, commits, most_confident};
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

pub(crate) struct TextStage {
    /// prompt, answer, and what stands behind it
    ids: Vec<u32>,
    /// the same with the prompt masked; empty without guidance
    unconditional: Vec<u32>,
    answer: Range<usize>,
    options: TextOptions,
    mask: u32,
    vocab: Range<u32>,
    forbidden: Forbidden,
    /// tokens given beforehand, by position in the answer
    pinned: Vec<(usize, u32)>,
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
    /// all of this as the context counts it
    _charge: Charge,
}

/// What a step works in; sized at the start.
#[derive(Default)]
struct Buffers {
    rows: Vec<usize>,
    draws: Vec<Draw>,
    choosing: Choosing,
    chosen: Vec<usize>,
}

impl Buffers {
    fn new(rows: usize, width: usize, passes: usize) -> Result<Self> {
        Ok(Buffers {
            choosing: Choosing {
                logits: try_with_capacity(rows.saturating_mul(width).saturating_mul(passes), LOGITS)?,
                choices: try_with_capacity(rows, CANVAS)?,
                candidates: try_with_capacity(rows, CANVAS)?,
            },
            rows: try_with_capacity(rows, CANVAS)?,
            draws: try_with_capacity(rows, CANVAS)?,
            chosen: try_with_capacity(rows, CANVAS)?,
        })
    }

    /// Bytes that `new` takes.
    fn bytes(rows: usize, width: usize, passes: usize) -> usize {
        let row = 2 * size_of::<usize>() + size_of::<Draw>() + size_of::<Candidate>() + size_of::<Choice>();
        rows.saturating_mul(width.saturating_mul(4 * passes).saturating_add(row))
    }
}

const LOGITS: &str = "the logits of a block of text";
const CANVAS: &str = "the canvas of an answer";

/// Rows of logits that a step looks at, how many of a row at a time, and passes.
fn sizes(vocabulary: &Vocabulary, options: &TextOptions) -> (usize, usize, usize) {
    // Only an unrestricted run can choose [MASK] itself and so leave masks behind in earlier blocks.
    let (rows, end) = match options.unrestricted {
        true => (options.gen_length, vocabulary.rows),
        false => (options.block_length, vocabulary.text),
    };
    (rows, SLICE.min(end as usize), if options.cfg_scale > 0.0 { 2 } else { 1 })
}

impl TextStage {
    /// Bytes that it takes with a sequence of `length` tokens. Saturates: sizes come from a request that nobody checked.
    pub fn bytes(vocabulary: &Vocabulary, length: usize, options: &TextOptions) -> usize {
        let (rows, width, passes) = sizes(vocabulary, options);
        let slots = size_of::<Slot>().saturating_mul(options.gen_length);
        Buffers::bytes(rows, width, passes).saturating_add((4 * passes).saturating_mul(length)).saturating_add(slots)
    }

    /// `prompt`, then the answer's masks and pinned tokens, then `behind`. Lengths and options have been checked.
    pub(super) fn new(
        engine: &dyn Engine,
        prompt: Vec<u32>,
        behind: &[u32],
        question: Option<Question>,
        options: TextOptions,
    ) -> Result<Self> {
        let vocabulary = engine.vocabulary();
        let end = if options.unrestricted { vocabulary.rows } else { vocabulary.text };
        let forbidden = options.forbidden(vocabulary, end)?;
        let pinned = options.pinned(vocabulary)?;
        let mask = vocabulary.mask;
        let answer = prompt.len()..prompt.len() + options.gen_length;
        let length = answer.end + behind.len();
        let charge = engine.take(TextStage::bytes(vocabulary, length, &options), LOGITS)?;
        let (rows, width, passes) = sizes(vocabulary, &options);
        let buffers = Buffers::new(rows, width, passes)?;

        let mut ids = prompt;
        try_reserve(&mut ids, length - answer.start, CANVAS)?;
        ids.resize(answer.end, mask);
        ids.extend_from_slice(behind);
        let mut slots = try_with_capacity(options.gen_length, CANVAS)?;
        slots.resize(options.gen_length, Slot::Masked);
        for &(position, id) in &pinned {
            ids[answer.start + position] = id;
            slots[position] = Slot::Token(id);
        }
        let mut unconditional = Vec::new();
        if passes == 2 {
            unconditional = try_copy(&ids, CANVAS)?;
            unconditional[..answer.start].fill(mask);
        }
        Ok(TextStage {
            ids,
            unconditional,
            answer,
            mask,
            vocab: 0..end,
            forbidden,
            pinned,
            question,
            step: 0,
            done: false,
            prefix: 0,
            end: None,
            stopped: None,
            slots,
            buffers,
            _charge: charge,
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
    /// Tokens before the answer, and of it.
    pub fn lengths(&self) -> (usize, usize) {
        (self.answer.start, self.answer.len())
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
        let positions = block * self.options.block_length..(block + 1) * self.options.block_length;
        let count = commits(self.masked_at_first(positions.clone()), step_in_block, steps_per_block);
        let changed = match count {
            0 => Vec::new(), // more steps than tokens: this one has nothing to decide
            _ => self.denoise(engine, cancel, noise, positions.end, count)?,
        };
        if let Err(error) = self.advance(engine.vocabulary(), tokenizer) {
            self.take_back(&changed);
            return Err(error);
        }
        self.step += 1;
        self.done = self.step == self.options.steps || self.end.is_some();
        Ok(self.report(changed))
    }

    /// How many of the answer's `positions` are not pinned.
    fn masked_at_first(&self, positions: Range<usize>) -> usize {
        let before = |position: usize| self.pinned.partition_point(|pinned| pinned.0 < position);
        positions.len() - (before(positions.end) - before(positions.start))
    }

    /// Masks again what a step has decided.
    fn take_back(&mut self, changed: &[Change]) {
        for &Change { position, .. } in changed {
            self.slots[position] = Slot::Masked;
            let at = self.answer.start + position;
            self.ids[at] = self.mask;
            if let Some(slot) = self.unconditional.get_mut(at) {
                *slot = self.mask;
            }
        }
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
        let Buffers { rows, draws, choosing, chosen } = &mut self.buffers;
        let start = self.answer.start;
        rows.clear();
        rows.extend((start..start + end).filter(|&position| self.ids[position] == self.mask));
        draws.clear();
        draws.extend(rows.iter().map(|&position| Draw::new(Stage::Text, self.step, position - start)));
        let philox = Philox::new(self.options.seed);
        let rule = Rule {
            temperature: self.options.temperature,
            remasking: self.options.remasking,
            cfg_scale: self.options.cfg_scale,
            forbidden: &self.forbidden,
            noise: noise.unwrap_or(&philox),
        };
        let wanted = SequenceRequest { ids: &self.ids, rows, vocab: self.vocab.clone() };
        let masked = SequenceRequest { ids: &self.unconditional, ..wanted.clone() };
        let batch = [wanted, masked];
        let batch = &batch[..if self.unconditional.is_empty() { 1 } else { 2 }];
        engine.choose(cancel, batch, draws, rule, choosing)?;
        let proposals = &choosing.candidates;
        most_confident(proposals, count, chosen);

        let mut changed = try_with_capacity(chosen.len(), CANVAS)?;
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

    /// Moves the prefix on, and looks whether the answer ends in it. Nothing has moved if it fails.
    fn advance(&mut self, vocabulary: &Vocabulary, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let before = self.prefix;
        let answer = &self.ids[self.answer.clone()];
        let prefix = before + answer[before..].iter().take_while(|&&id| id != self.mask).count();
        let mut end = None;
        if !self.options.unrestricted {
            let ending = answer[before..prefix].iter().position(|&id| vocabulary.is_end(id));
            end = ending.map(|i| before + i);
        }
        if let Some(tokenizer) = tokenizer.filter(|_| prefix > before) {
            let visible = &answer[..end.unwrap_or(prefix)];
            if let Some((ids, text)) = self.find_stop(visible, vocabulary, tokenizer)? {
                (end, self.stopped) = (Some(ids), Some(text));
            }
        }
        (self.prefix, self.end) = (prefix, end);
        Ok(())
    }

    /// How many of the `visible` ids of the answer stand before the first stop text, and their text up to it.
    fn find_stop(
        &self,
        visible: &[u32],
        vocabulary: &Vocabulary,
        tokenizer: &Tokenizer,
    ) -> Result<Option<(usize, String)>> {
        let mut text = decode(vocabulary, tokenizer, visible)?;
        let stops = self.options.stop.iter().filter_map(|stop| text.find(stop.as_str()));
        let Some(cut) = stops.min() else { return Ok(None) };
        // The ids of the answer are those whose text is before the cut entirely.
        let mut whole = visible.len();
        while whole > 0 && decode(vocabulary, tokenizer, &visible[..whole])?.len() > cut {
            whole -= 1;
        }
        text.truncate(cut);
        Ok(Some((whole, text)))
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
            Some(text) => try_string(text, TEXT)?,
            None => decode(engine.vocabulary(), engine.tokenizer()?, self.visible())?,
        };
        let (thinking, answer) = split_thinking(&raw);
        let thinking = thinking.map(|text| try_string(text, TEXT)).transpose()?;
        let answer = try_string(answer, TEXT)?;
        Ok(Answer { raw, thinking, answer, ids: try_copy(self.visible(), TEXT)? })
    }

    /// Writes the beginning of the whole sequence to `prompt`, with everything in the answer and behind it replaced by eos from
    /// the first end token, or the end of what counts, on.
    pub fn describe(&self, vocabulary: &Vocabulary, prompt: &mut [u32]) {
        prompt.copy_from_slice(&self.ids[..prompt.len()]);
        let region = &mut prompt[self.answer.start..];
        let ending = region.iter().position(|&id| vocabulary.is_end(id)).unwrap_or(region.len());
        let ending = self.end.map_or(ending, |end| end.min(ending));
        region[ending..].fill(vocabulary.eos);
    }
}

const TEXT: &str = "the text of an answer";

/// The text of ids without special tokens. Ids that are no text (an unrestricted run may have chosen some) have none.
fn decode(vocabulary: &Vocabulary, tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    if ids.iter().all(|&id| id < vocabulary.text) {
        return tokenizer.try_decode(ids, true);
    }
    let text = try_collect(ids.iter().copied().filter(|&id| id < vocabulary.text), TEXT)?;
    tokenizer.try_decode(&text, true)
}
