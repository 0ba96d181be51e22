//! Prompts, tokenizer and schedules: equal to the last id.

use mmada::prompt::{self, DrawPrompt, Message, Role};
use mmada::sampler::Schedule;
use mmada::tokenizer::Special;

use super::cases::{DrawCase, PromptCase, ReasonedCase, ScheduleCase, TextCase, TokenizerCase, Turn};
use super::fixture::{Fixture, fixtures};

fn message(turn: Turn) -> Message {
    let role = match turn.role.as_str() {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => panic!("no such role: {other}"),
    };
    Message::new(role, turn.content)
}

fn chat(fixture: &Fixture, messages: &[Message], thinking: bool) -> Vec<u32> {
    let model = fixture.model();
    prompt::chat(model.tokenizer().unwrap(), model.vocabulary(), model.chat_template().unwrap(), messages, thinking)
        .unwrap()
}

fn draw(fixture: &Fixture, text: &str, max_text_len: usize) -> DrawPrompt {
    let model = fixture.model();
    prompt::draw(model.tokenizer().unwrap(), model.vocabulary(), text, max_text_len).unwrap()
}

#[test]
fn prompts_are_the_golden_ones() {
    for fixture in fixtures() {
        for (i, case) in fixture.cases("prompt_cases.json").into_iter().enumerate() {
            let what = format!("{} prompt {i}", fixture.name);
            match case {
                PromptCase::Chat { messages, thinking, ids } => {
                    let messages: Vec<Message> = messages.into_iter().map(message).collect();
                    assert_eq!(chat(fixture, &messages, thinking), ids, "{what}");
                }
                PromptCase::Draw { text, max_text_len, ids, cut } => {
                    assert_eq!(draw(fixture, &text, max_text_len), DrawPrompt { ids, truncated: cut }, "{what}");
                }
            }
        }
    }
}

#[test]
fn the_prompts_of_all_runs_are_the_golden_ones() {
    for fixture in fixtures() {
        for file in ["text_cases.json", "noisy_cases.json"] {
            for case in fixture.cases::<TextCase>(file) {
                let ids = chat(fixture, &[Message::user(&case.prompt)], case.thinking);
                assert_eq!(ids, case.prompt_ids, "{} {file}: {}", fixture.name, case.prompt);
            }
        }
        let model = fixture.model();
        for case in fixture.cases::<TextCase>("mmu_cases.json") {
            let codes: Vec<u32> = case.prompt_ids.iter().filter_map(|id| model.vocabulary().image_code(*id)).collect();
            let (t, v, messages) = (model.tokenizer().unwrap(), model.vocabulary(), [Message::user(&case.prompt)]);
            let ids =
                prompt::image_question(t, v, model.chat_template().unwrap(), &codes, &messages, case.thinking).unwrap();
            assert_eq!(ids, case.prompt_ids, "{} mmu: {}", fixture.name, case.prompt);
        }
        for case in fixture.cases::<DrawCase>("t2i_cases.json") {
            let ids = draw(fixture, &case.prompt, case.max_text_len).ids;
            assert_eq!(ids, case.prompt_ids, "{} t2i: {}", fixture.name, case.prompt);
        }
        for case in fixture.cases::<ReasonedCase>("r2i_cases.json") {
            let ids = prompt::reasoned(model.tokenizer().unwrap(), model.vocabulary(), &case.prompt).unwrap();
            assert_eq!(ids, case.prompt_ids, "{} r2i: {}", fixture.name, case.prompt);
        }
    }
}

#[test]
fn the_tokenizer_s_cases_are_met() {
    for fixture in fixtures() {
        let tokenizer = fixture.model().tokenizer().unwrap();
        for case in fixture.cases::<TokenizerCase>("tokenizer_cases.json") {
            let ids = tokenizer.encode(&case.text, Special::Parse).unwrap();
            assert_eq!(ids, case.ids, "{}: {:?}", fixture.name, case.text);
            assert_eq!(tokenizer.decode(&ids, true), case.decoded, "{}: {:?}", fixture.name, case.text);
        }
    }
}

#[test]
fn schedules_mask_as_many_positions_as_the_golden_ones() {
    for fixture in fixtures() {
        for case in fixture.cases::<ScheduleCase>("schedule_cases.json") {
            let schedule: Schedule = case.schedule.parse().unwrap();
            let masked: Vec<i64> = (0..case.steps).map(|t| schedule.masked(case.tokens, t, case.steps)).collect();
            let ScheduleCase { schedule: name, tokens, steps, masked: expected } = case;
            assert_eq!(masked, expected, "{}: {name}, {tokens} tokens in {steps} steps", fixture.name);
        }
    }
}
