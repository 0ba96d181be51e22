//! Data files: JSON lines, and plain text.

use std::path::{Path, PathBuf};

use mmada::{Error, Result};

use super::{Picture, Sample, Task};
use crate::json::{Object, read_text};

/// Reads data files.
///
/// JSON lines (a name that ends in `.jsonl` or `.json`, or a file that begins with `{`) are objects with `prompt`,
/// `answer`, `image` (a path, relative to the file) and `task` (`chat`, `think`, `question`, `think-question`, `draw`);
/// other keys are not looked at. Without a task, a picture with an answer is a question about it, a picture without one
/// is to be drawn, and an answer that holds `</think>` was thought about. Without an answer or a picture to draw, the
/// model makes its own. Of an answer without a prompt the beginning is the prompt, as it is of each paragraph of a plain
/// text.
///
/// # Errors
/// `Io` and `Format` name the file, and the line where one is at fault.
pub fn read_samples(files: &[PathBuf]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for file in files {
        let before = samples.len();
        let text = read_text(file)?;
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "jsonl" | "json") || text.trim_start().starts_with('{') {
            json_lines(file, &text, &mut samples)?;
        } else {
            paragraphs(file, &text, &mut samples);
        }
        if samples.len() == before {
            return Err(Error::format(file.display(), "holds no data"));
        }
    }
    Ok(samples)
}

fn json_lines(file: &Path, text: &str, samples: &mut Vec<Sample>) -> Result<()> {
    for (n, line) in text.lines().enumerate() {
        if !line.trim().is_empty() {
            let origin = format!("{}: line {}", file.display(), n + 1);
            samples.push(sample(file, &Object::parse(line, &origin)?, origin)?);
        }
    }
    Ok(())
}

fn sample(file: &Path, object: &Object, origin: String) -> Result<Sample> {
    let text = |key| Ok::<_, Error>(object.str(key)?.map(str::to_owned).filter(|text| !text.trim().is_empty()));
    let (mut prompt, mut answer, image) = (text("prompt")?, text("answer")?, object.str("image")?);
    let picture = image.map(|path| file.parent().unwrap_or(Path::new("")).join(path));
    if let Some(path) = picture.as_ref().filter(|path| !path.is_file()) {
        return Err(object.wrong("image", format!("{} is no file", path.display())));
    }
    let task = match object.str("task")? {
        Some(name) => Task::from_name(name).ok_or_else(|| {
            object.wrong("task", format!("is {name:?}, expected one of {}", Task::ALL.map(Task::name).join(", ")))
        })?,
        None => default_task(answer.as_deref(), picture.is_some()),
    };
    if prompt.is_none() && answer.is_some() && picture.is_none() && !task.thinks() {
        (prompt, answer) = continuation(answer.as_deref().unwrap_or_default());
    }
    let prompt = object.required("prompt", prompt)?;
    match task {
        Task::Chat | Task::Think if picture.is_some() => {
            return Err(object.wrong("image", format!("does not go with the task {}", task.name())));
        }
        Task::Question | Task::ThinkQuestion => drop(object.required("image", image)?),
        Task::Draw if answer.is_some() => return Err(object.wrong("answer", "does not go with the task draw")),
        _ => {}
    }
    Ok(Sample { task, prompt, answer, picture: picture.map(Picture::File), origin })
}

fn default_task(answer: Option<&str>, picture: bool) -> Task {
    let thinks = answer.is_some_and(|answer| answer.contains("</think>"));
    match (picture, answer.is_some(), thinks) {
        (true, false, _) => Task::Draw,
        (true, true, false) => Task::Question,
        (true, true, true) => Task::ThinkQuestion,
        (false, _, false) => Task::Chat,
        (false, _, true) => Task::Think,
    }
}

/// Paragraphs end at empty lines.
fn paragraphs(file: &Path, text: &str, samples: &mut Vec<Sample>) {
    let mut add = |lines: &mut Vec<&str>, first: usize| {
        if let (Some(prompt), answer) = continuation(&std::mem::take(lines).join("\n")) {
            let origin = format!("{}: line {first}", file.display());
            samples.push(Sample { task: Task::Chat, prompt, answer, picture: None, origin });
        }
    };
    let (mut lines, mut first) = (Vec::new(), 1);
    for (n, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            add(&mut lines, first);
            first = n + 2;
        } else {
            lines.push(line);
        }
    }
    add(&mut lines, first);
}

/// The first sentence, or where there is only one the first quarter of its words, and the text that continues it. A
/// single word has no continuation, and nothing is nothing.
fn continuation(text: &str) -> (Option<String>, Option<String>) {
    let text = text.trim();
    let words: Vec<usize> = text
        .char_indices()
        .scan(true, |before, (at, c)| Some((std::mem::replace(before, c.is_whitespace()), at, c)))
        .filter(|(before, _, c)| *before && !c.is_whitespace())
        .map(|(_, at, _)| at)
        .collect();
    let Some(last) = words.len().checked_sub(1) else { return (None, None) };
    if last == 0 {
        return (Some(text.to_owned()), None);
    }
    let ends_sentence = |at: &usize| text[..*at].trim_end().ends_with(['.', '!', '?']);
    let quarter = words.len().div_ceil(4).min(last);
    let cut = words[1..].iter().copied().find(ends_sentence).unwrap_or(words[quarter]);
    (Some(text[..cut].trim_end().to_owned()), Some(text[cut..].to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_continued_after_its_first_sentence_or_first_quarter() {
        let cut = |text| continuation(text);
        let pair = |a: &str, b: &str| (Some(a.to_owned()), Some(b.to_owned()));
        assert_eq!(cut("  It rains. The cat\nsleeps.  "), pair("It rains.", "The cat\nsleeps."));
        assert_eq!(cut("one two three four five six"), pair("one two", "three four five six"));
        assert_eq!(cut("\u{e9}\u{a0}\u{fc} x"), pair("\u{e9}", "\u{fc} x"));
        assert_eq!(cut("one two"), pair("one", "two"));
        assert_eq!(cut("word"), (Some("word".into()), None));
        assert_eq!(cut(" \n"), (None, None));
    }
}
