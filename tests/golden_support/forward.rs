//! Hidden states and logits.

use std::ops::Range;

use mmada::kernels::Kernels;
use mmada::model::{Logits, Observers, Parts, Run, SequenceRequest, State, Transformer};
use mmada::parallel::{Exec, Threads};
use mmada::{Compute, Context, ContextOptions};

use super::api;
use super::compare::{close, same_bits};
use super::fixture::{Fixture, fixtures};
use super::tensors::Tensors;

/// A correct f32 forward lands between 3e-6 and 1.5e-5 of a tensor's maximum.
const TOLERANCE: f32 = 5e-5;

/// [layers + 1, tokens, d_model]: the input of every layer, then the final norm's output.
fn hidden_states(context: &Context, ids: &[u32]) -> Vec<f32> {
    context.hidden_states(ids).unwrap().concat()
}

/// All logits of a batch of sequences: [tokens, vocabulary], one sequence after the other.
fn logits(context: &Context, batch: &[&[u32]]) -> Vec<f32> {
    let rows: Vec<Vec<usize>> = batch.iter().map(|ids| (0..ids.len()).collect()).collect();
    let vocab = 0..context.model().vocabulary().rows;
    let request = |(ids, rows)| SequenceRequest { ids, rows, vocab: vocab.clone() };
    let requests: Vec<SequenceRequest> =
        batch.iter().copied().zip(rows.iter().map(Vec::as_slice)).map(request).collect();
    context.logits(&requests).unwrap().concat()
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
            let expected_hidden = fixture.tensor(Tensors::f32s, &format!("{case}.hidden")).data;
            let expected_logits = fixture.tensor(Tensors::f32s, &format!("{case}.logits")).data;
            for kernels in Kernels::available() {
                let what = format!("{} {case} {}", fixture.name, kernels.name());
                let alone = api::context(fixture, 1, kernels);
                let (alone_hidden, alone_logits) = (hidden_states(&alone, &ids), logits(&alone, &[&ids]));
                close(&format!("{what} hidden"), &alone_hidden, &expected_hidden, TOLERANCE);
                close(&format!("{what} logits"), &alone_logits, &expected_logits, TOLERANCE);
                for threads in [2, 3] {
                    let shared = api::context(fixture, threads, kernels);
                    let what = format!("{what}, {threads} threads");
                    same_bits(&format!("{what}: hidden"), &hidden_states(&shared, &ids), &alone_hidden);
                    same_bits(&format!("{what}: logits"), &logits(&shared, &[&ids]), &alone_logits);
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
        let got = logits(&api::context(fixture, 2, Kernels::best()), &[&kept]);
        close(&format!("{} padded", fixture.name), &got, &expected, TOLERANCE);
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    for fixture in fixtures() {
        let ids: Vec<Vec<u32>> =
            cases(fixture).iter().map(|case| fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data).collect();
        if ids.is_empty() {
            continue;
        }
        for kernels in Kernels::available() {
            let context = api::context(fixture, 2, kernels);
            let batch: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
            let together = logits(&context, &batch);
            let alone: Vec<f32> = batch.iter().flat_map(|ids| logits(&context, &[ids])).collect();
            same_bits(&format!("{} {} batch", fixture.name, kernels.name()), &together, &alone);
        }
    }
}

#[test]
fn some_rows_and_some_ids_have_the_logits_they_have_among_all() {
    for fixture in fixtures() {
        let Some(case) = cases(fixture).pop() else { continue };
        let ids = fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data;
        let vocabulary = fixture.model().vocabulary();
        let vocab = vocabulary.rows / 3..vocabulary.rows - 1;
        let rows: Vec<usize> = (0..ids.len()).rev().step_by(3).collect();
        for kernels in Kernels::available() {
            let context = api::context(fixture, 2, kernels);
            let all = logits(&context, &[&ids]);
            let request = SequenceRequest { ids: &ids, rows: &rows, vocab: vocab.clone() };
            let some = context.logits(&[request]).unwrap().concat();
            let row = |r: &usize| &all[r * vocabulary.rows as usize..][vocab.start as usize..vocab.end as usize];
            let expected: Vec<f32> = rows.iter().flat_map(row).copied().collect();
            same_bits(&format!("{} {case} {}", fixture.name, kernels.name()), &some, &expected);
        }
    }
}

#[test]
fn logits_in_parts_of_the_vocabulary_are_those_of_whole_rows() {
    for fixture in fixtures() {
        let Some(case) = cases(fixture).pop() else { continue };
        let ids = fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data;
        let model = fixture.model();
        let (vocab, rows) = (3..model.vocabulary().rows - 2, [ids.len() - 1, 0]);
        let request = SequenceRequest { ids: &ids, rows: &rows, vocab: vocab.clone() };
        let batch = [request.clone(), request];
        let transformer = Transformer::from_header(model.header()).unwrap();
        for kernels in Kernels::available() {
            let whole = api::context(fixture, 2, kernels).logits(&batch).unwrap().concat();
            let threads = Threads::new(2).unwrap();
            let exec = Exec::new(&threads, kernels, None);
            let run = Run::new(&exec, model.bytes(), Compute::Exact);
            let (width, mut next) = (100, vocab.start);
            let mut parts = vec![f32::NAN; whole.len()];
            let mut visit = |ids: Range<u32>, logits: &mut [f32]| {
                assert_eq!((ids.start, logits.len()), (next, 4 * ids.len()));
                next = ids.end;
                let at = (ids.start - vocab.start) as usize;
                for (to, from) in parts.chunks_mut(vocab.len()).zip(logits.chunks(ids.len())) {
                    to[at..][..ids.len()].copy_from_slice(from);
                }
                Ok(())
            };
            let mut buffer = vec![0.0; 4 * width];
            let logits = Logits::Parts(Parts { buffer: &mut buffer, width, visit: &mut visit });
            transformer.forward(&run, &mut State::default(), &batch, logits, Observers::default()).unwrap();
            assert_eq!(next, vocab.end);
            same_bits(&format!("{} {case} {}", fixture.name, kernels.name()), &parts, &whole);
        }
    }
}

#[test]
fn rows_have_their_logits_in_any_order_and_twice_beside_a_sequence_that_wants_none() {
    for fixture in fixtures() {
        let Some(case) = cases(fixture).pop() else { continue };
        let ids = fixture.tensor(Tensors::ids, &format!("{case}.input_ids")).data;
        let (last, width) = (ids.len() - 1, fixture.model().vocabulary().rows as usize);
        let rows: [&[usize]; 3] = [&[last, 0, last, last / 2], &[], &[1]];
        for kernels in Kernels::available() {
            for compute in [Compute::Exact, Compute::Fast] {
                let instruction_set = Some(kernels.name().to_owned());
                let options = ContextOptions { threads: 2, compute, instruction_set, ..Default::default() };
                let context = Context::new(fixture.model(), options).unwrap();
                let all = logits(&context, &[&ids]);
                let request = |rows| SequenceRequest { ids: &ids, rows, vocab: 0..width as u32 };
                let some = context.logits(&rows.map(request)).unwrap().concat();
                let expected: Vec<f32> =
                    rows.concat().iter().flat_map(|r| &all[r * width..][..width]).copied().collect();
                same_bits(&format!("{} {case} {} {compute:?}", fixture.name, kernels.name()), &some, &expected);
            }
        }
    }
}
