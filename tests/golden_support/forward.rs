//! Hidden states and logits.

use mmada::kernels::Kernels;
use mmada::model::{SequenceRequest, State, Transformer};
use mmada::parallel::{Exec, Threads};

use super::compare::{close, same_bits};
use super::fixture::{Fixture, fixtures};
use super::tensors::Tensors;

/// A correct f32 forward lands between 3e-6 and 1.5e-5 of a tensor's maximum.
const TOLERANCE: f32 = 5e-5;

/// What one forward gave.
struct Output {
    /// [layers + 1, tokens, d_model]: the input of every layer, then the final norm's output.
    hidden: Vec<f32>,
    /// [tokens, vocabulary], one sequence after the other.
    logits: Vec<f32>,
}

/// The network of a fixture, with one kind of kernels and some threads.
struct Network<'a> {
    fixture: &'a Fixture,
    transformer: Transformer,
    threads: Threads,
    kernels: &'static Kernels,
}

impl<'a> Network<'a> {
    fn new(fixture: &'a Fixture, kernels: &'static Kernels, threads: usize) -> Self {
        let transformer = Transformer::from_header(&fixture.model().header).unwrap();
        Network { fixture, transformer, threads: Threads::new(threads).unwrap(), kernels }
    }

    /// All logits of a batch of sequences.
    fn run(&self, batch: &[&[u32]]) -> Output {
        let rows: Vec<Vec<usize>> = batch.iter().map(|ids| (0..ids.len()).collect()).collect();
        let vocab = 0..self.fixture.model().vocabulary.rows;
        let requests: Vec<SequenceRequest> = batch
            .iter()
            .zip(&rows)
            .map(|(ids, rows)| SequenceRequest { ids, rows, vocab: vocab.clone() })
            .collect();
        self.request(&requests)
    }

    fn request(&self, requests: &[SequenceRequest]) -> Output {
        let exec = Exec::new(&self.threads, self.kernels, None);
        let mut logits = vec![0.0; requests.iter().map(SequenceRequest::logits).sum()];
        let mut hidden = Vec::new();
        let mut observe = |_: usize, x: &[f32]| hidden.extend_from_slice(x);
        let file = self.fixture.model().file.bytes();
        let mut state = State::default();
        self.transformer.forward(&exec, file, &mut state, requests, &mut logits, Some(&mut observe)).unwrap();
        Output { hidden, logits }
    }
}

/// The names of the expected forwards, such as `forward.0`.
fn cases(fixture: &Fixture) -> Vec<String> {
    let cases = fixture.numbered("forward", "input_ids");
    if cases.is_empty() {
        fixture.skip("no forward.0.input_ids");
    }
    cases
}

#[test]
fn hidden_states_and_logits_are_the_golden_ones_with_every_kernel_and_any_number_of_threads() {
    for fixture in fixtures() {
        for case in cases(fixture) {
            let ids = fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data;
            let hidden = fixture.tensor(Tensors::f32s, &format!("{case}.hidden"));
            let logits = fixture.tensor(Tensors::f32s, &format!("{case}.logits"));
            for kernels in Kernels::available() {
                let what = format!("{} {case} {}", fixture.name, kernels.name());
                let alone = Network::new(fixture, kernels, 1).run(&[&ids]);
                close(&format!("{what} hidden"), &alone.hidden, &hidden.data, TOLERANCE);
                close(&format!("{what} logits"), &alone.logits, &logits.data, TOLERANCE);
                for threads in [2, 3] {
                    let shared = Network::new(fixture, kernels, threads).run(&[&ids]);
                    same_bits(&format!("{what} hidden, {threads} threads"), &shared.hidden, &alone.hidden);
                    same_bits(&format!("{what} logits, {threads} threads"), &shared.logits, &alone.logits);
                }
            }
        }
    }
}

#[test]
fn leaving_out_the_left_pads_gives_the_logits_of_the_padded_batch() {
    for fixture in fixtures() {
        let Some(ids) = fixture.expected.as_ref().and_then(|e| e.ids("padded.input_ids")) else {
            fixture.skip("no padded.input_ids");
            continue;
        };
        let mask = fixture.tensor(Tensors::ids, "padded.attention_mask").data;
        let expected = fixture.tensor(Tensors::f32s, "padded.logits_of_unpadded").data;
        let kept: Vec<u32> = ids.data.iter().zip(&mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect();
        assert!(kept.len() < ids.data.len(), "{}: nothing is padded", fixture.name);
        let output = Network::new(fixture, Kernels::best(), 2).run(&[&kept]);
        close(&format!("{} padded", fixture.name), &output.logits, &expected, TOLERANCE);
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for fixture in fixtures() {
        let ids: Vec<Vec<u32>> = cases(fixture)
            .iter()
            .map(|case| fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data)
            .collect();
        if ids.is_empty() {
            continue;
        }
        for kernels in Kernels::available() {
            let network = Network::new(fixture, kernels, 2);
            let batch: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
            let together = network.run(&batch).logits;
            let alone: Vec<f32> = batch.iter().flat_map(|ids| network.run(&[ids]).logits).collect();
            same_bits(&format!("{} {} batch", fixture.name, kernels.name()), &together, &alone);
        }
    }
}

#[test]
fn some_rows_and_some_ids_have_the_logits_they_have_among_all() {
    for fixture in fixtures() {
        let Some(case) = cases(fixture).pop() else { continue };
        let ids = fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data;
        let vocabulary = &fixture.model().vocabulary;
        let vocab = vocabulary.rows / 3..vocabulary.rows - 1;
        let rows: Vec<usize> = (0..ids.len()).rev().step_by(3).collect();
        for kernels in Kernels::available() {
            let network = Network::new(fixture, kernels, 2);
            let all = network.run(&[&ids]).logits;
            let some = network.request(&[SequenceRequest { ids: &ids, rows: &rows, vocab: vocab.clone() }]).logits;
            let row = |r: &usize| &all[r * vocabulary.rows as usize..][vocab.start as usize..vocab.end as usize];
            let expected: Vec<f32> = rows.iter().flat_map(row).copied().collect();
            same_bits(&format!("{} {case} {}", fixture.name, kernels.name()), &some, &expected);
        }
    }
}
