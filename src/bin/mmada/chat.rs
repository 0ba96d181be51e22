//! `mmada chat`: a conversation, one line a message. Works on a terminal and in a pipe.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use mmada::{Message, RgbImage, Role, TextOptions};
use serde_json::json;

use crate::args::{ChatArgs, Common};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::session::{self, Session};
use crate::{ask, interrupt};

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

pub fn run(common: &Common, args: &ChatArgs, output: &Output) -> Result<(), Failure> {
    let session = Session::open(common, output)?;
    let picture = ask::picture(&session.model, &args.text)?;
    let options = ask::options(&session.model, &args.text)?;
    let person = io::stdin().is_terminal() && output.terminal;
    let system = args.system.iter().map(Message::system);
    let mut chat = Chat { session, args, picture, options, messages: system.collect(), turn: 0 };
    let kept = chat.messages.len();
    if person {
        output.note("/reset forgets the conversation, /quit leaves");
    }
    loop {
        if person {
            prompt();
        }
        let Some(line) = next_line(&mut io::stdin().lock())? else { return Ok(()) };
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/reset" => chat.messages.truncate(kept),
            text => match chat.turn(text) {
                // A person may shorten the question or begin anew; in a pipe nobody would notice the gap.
                Err(Failure::Input(why)) if person => output::say(&format!("mmada: {why}")),
                done => done?,
            },
        }
    }
}

fn prompt() {
    let mut err = io::stderr().lock();
    let _ = err.write_all(b"> ").and_then(|()| err.flush());
}

struct Chat<'a> {
    session: Session,
    args: &'a ChatArgs,
    picture: Option<RgbImage>,
    options: TextOptions,
    messages: Vec<Message>,
    turn: u64,
}

impl Chat<'_> {
    /// Answers `text`. Only an answered message enters the conversation.
    fn turn(&mut self, text: &str) -> Result<(), Failure> {
        let (session, args) = (&self.session, &self.args.text);
        // Each turn has a seed of its own, and the whole conversation follows from the first.
        let options = TextOptions { seed: self.options.seed.wrapping_add(self.turn), ..self.options.clone() };
        let mut messages = self.messages.clone();
        messages.push(Message::user(text));
        let request = ask::request(messages.clone(), self.picture.clone(), args, options.clone());

        let mut generation = session.context.text(request).map_err(|e| self.outgrown(e))?;
        let guard = session::cancel_on_interrupt(&generation);
        session.warn_of(&generation);
        let times = session.run(&mut generation, |_, _| Ok(()))?;
        let answer = generation.text()?;
        drop(guard);
        interrupt::check()?;
        if session.output.json {
            let mut object = ask::answer_json(&answer, &options, &times);
            object["turn"] = json!(self.turn);
            object["model"] = json!(session.file);
            object["instruction_set"] = json!(session.context.instruction_set());
            object["device"] = json!(session.context.device());
            object["warnings"] = json!(generation.warnings());
            output::print_json(&object)?;
        } else {
            output::print_line(ask::shown(&answer, args))?;
            ask::report_seed(&session.output, args, &options);
        }
        // The thinking is not part of what was said.
        messages.push(Message::assistant(answer.answer));
        self.messages = messages;
        self.turn += 1;
        Ok(())
    }

    /// Says what can be done about a conversation that has become too long.
    fn outgrown(&self, error: mmada::Error) -> Failure {
        let first = !self.messages.iter().any(|m| m.role == Role::User);
        match error {
            mmada::Error::ContextOverflow { .. } if !first => Failure::Input(format!(
                "{error}: the conversation has outgrown it; /reset begins a new one, nothing was cut"
            )),
            other => other.into(),
        }
    }
}

/// The next line without its end, or `None` at the end of input.
fn next_line(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
    match read {
        Err(e) => return Err(Failure::Run(format!("standard input: {}", output::reason(&e)))),
        Ok(0) => return Ok(None),
        Ok(n) if n as u64 == MAX_LINE && line.last() != Some(&b'\n') => {
            return Err(Failure::Input(format!("standard input: a line is longer than {MAX_LINE} bytes")));
        }
        Ok(_) => {}
    }
    match String::from_utf8(line) {
        Ok(line) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
        Err(_) => Err(Failure::Input("standard input: a line is not UTF-8".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_whatever_ends_them() {
        let mut input = io::Cursor::new(b"one\r\n\ntwo\nlast".to_vec());
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["one", "", "two", "last"]);
    }

    #[test]
    fn a_line_without_end_or_encoding_is_refused() {
        let endless = next_line(&mut io::BufReader::new(io::repeat(b'a'))).unwrap_err();
        assert!(endless.to_string().contains("longer than"), "{endless}");
        let latin = next_line(&mut io::Cursor::new(b"caf\xe9\n".to_vec())).unwrap_err();
        assert_eq!((latin.exit_code(), latin.to_string().contains("UTF-8")), (2, true));
    }
}
