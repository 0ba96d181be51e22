//! Where everything lies in a batch: sequences one after the other, and the rows that are wanted of them.

use std::ops::Range;

use super::transformer::SequenceRequest;
use crate::error::Result;
use crate::memory::{try_push, try_reserve, try_vec, try_with_capacity};

/// The rows of a batch, for up to as many tokens as there is room for.
#[derive(Default)]
pub struct Layout {
    /// position of every token inside its sequence; of the wanted ones alone once [`Layout::keep_wanted`] was called
    pub positions: Vec<u32>,
    /// the rows of each sequence
    pub sequences: Vec<Range<usize>>,
    /// the rows of the batch that go through all of the last layer, in ascending order, none twice
    pub wanted: Vec<usize>,
    /// whether a row is among them
    is_wanted: Vec<bool>,
    /// those of each sequence among them
    pub queries: Vec<Range<usize>>,
}

impl Layout {
    /// Room for `tokens` tokens.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn with_capacity(tokens: usize) -> Result<Self> {
        Ok(Layout {
            positions: try_vec(tokens, "a batch's positions")?,
            sequences: Vec::new(),
            wanted: try_with_capacity(tokens, "the rows whose logits are wanted")?,
            is_wanted: try_vec(tokens, "the rows whose logits are wanted")?,
            queries: Vec::new(),
        })
    }

    /// Bytes that `with_capacity` takes.
    pub fn bytes(tokens: usize) -> usize {
        tokens.saturating_mul(size_of::<u32>() + size_of::<usize>() + size_of::<bool>())
    }

    /// Lays out a batch, for which there is room. With `all` every row counts as wanted.
    ///
    /// # Errors
    /// `OutOfMemory` for the lists of sequences.
    pub fn set(&mut self, batch: &[SequenceRequest], all: bool) -> Result<()> {
        const WHAT: &str = "the list of a batch's sequences";
        self.sequences.clear();
        try_reserve(&mut self.sequences, batch.len(), WHAT)?;
        let mut end = 0;
        for s in batch {
            let start = end;
            end += s.ids.len();
            self.positions[start..end].iter_mut().zip(0..).for_each(|(place, position)| *place = position);
            try_push(&mut self.sequences, start..end, WHAT)?;
        }
        let marks = &mut self.is_wanted[..end];
        marks.fill(all);
        let starts = self.sequences.iter().map(|s| s.start);
        batch.iter().zip(starts).for_each(|(s, start)| s.rows.iter().for_each(|row| marks[start + row] = true));
        self.wanted.clear();
        self.wanted.extend((0..end).filter(|&row| marks[row])); // there is room for all
        self.queries.clear();
        try_reserve(&mut self.queries, batch.len(), WHAT)?;
        for place in &self.sequences {
            let queries = place_of(&self.wanted, place.start)..place_of(&self.wanted, place.end);
            self.queries.push(queries);
        }
        Ok(())
    }

    /// Rows of the batch.
    pub fn tokens(&self) -> usize {
        self.sequences.last().map_or(0, |s| s.end)
    }

    /// Moves the positions of the wanted rows to the front.
    pub fn keep_wanted(&mut self) {
        for (to, &from) in self.wanted.iter().enumerate() {
            // `to` is at most `from`: none is overwritten before it has moved
            self.positions[to] = self.positions[from];
        }
    }

    /// For every row of every sequence whose logits are wanted, in the order of requests, which of the wanted rows it is.
    pub fn places<'a>(
        &'a self,
        batch: &'a [SequenceRequest<'a>],
        sequences: Range<usize>,
    ) -> impl Iterator<Item = usize> + 'a {
        let starts = self.sequences[sequences.clone()].iter().map(|place| place.start);
        batch[sequences]
            .iter()
            .zip(starts)
            .flat_map(move |(s, start)| s.rows.iter().map(move |row| place_of(&self.wanted, start + row)))
    }
}

/// How many of `rows`, which ascend, come before `row`: where it is among them, if it is.
fn place_of(rows: &[usize], row: usize) -> usize {
    rows.partition_point(|&other| other < row)
}
