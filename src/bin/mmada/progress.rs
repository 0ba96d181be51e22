//! What a person at a terminal sees while the model works: the answer's positions denoising in place, or a bar
//! with the time left for pictures. Away from a terminal, nothing.

use std::io::Write;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// A position that is still masked.
pub const SHADE: char = '░';

/// Redraws no more often than this: a small model's steps take less time than a terminal does.
const REDRAW: Duration = Duration::from_millis(40);

/// Text that is drawn over itself on standard error.
pub struct Canvas {
    term: Option<Term>,
    lines_drawn: usize,
    last: Option<Instant>,
    began: Instant,
}

impl Canvas {
    pub fn new(output: &Output) -> Self {
        let term = output.shows_progress().then(Term::buffered_stderr);
        Canvas { term, lines_drawn: 0, last: None, began: Instant::now() }
    }

    /// Whether `draw` would do anything now; saves the work of decoding where it would not.
    pub fn is_due(&self) -> bool {
        self.term.is_some() && self.last.is_none_or(|last| last.elapsed() >= REDRAW)
    }

    /// Shows `text` (masks as `SHADE`) after step `index` of `total`, over what was drawn before.
    pub fn draw(&mut self, text: &str, index: usize, total: usize) {
        let Some(term) = &mut self.term else { return };
        let (height, width) = term.size();
        // A full last column makes some terminals wrap; one line is left for the cursor and one for the count.
        let mut lines = layout(text, usize::from(width).saturating_sub(1), usize::from(height).saturating_sub(2));
        lines.push(format!("step {index}/{total}{}", time_left(self.began.elapsed(), index, total)));
        let drawn = lines.len();
        lines.push(String::new());
        // Errors of a terminal that went away are not the command's.
        let _ = term.clear_last_lines(self.lines_drawn);
        let _ = term.write_all(lines.join("\n").as_bytes());
        let _ = term.flush();
        self.lines_drawn = drawn;
        self.last = Some(Instant::now());
    }

    /// Removes what was drawn.
    pub fn clear(&mut self) {
        if let Some(term) = &mut self.term {
            let _ = term.clear_last_lines(self.lines_drawn);
            let _ = term.flush();
            self.lines_drawn = 0;
        }
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        self.clear();
    }
}

fn time_left(elapsed: Duration, done: usize, total: usize) -> String {
    if done == 0 || done >= total {
        return String::new();
    }
    let left = elapsed.as_secs_f64() / done as f64 * (total - done) as f64;
    match left {
        s if s < 1.0 => String::new(),
        s if s < 90.0 => format!(", {s:.0} s left"),
        s => format!(", {:.0} min left", s / 60.0),
    }
}

/// Breaks `text` into lines of at most `width` columns (wide characters take two, combining ones none), and where
/// that makes more than `height` lines keeps those around the last one that holds something decided.
/// Control characters become dots, so that a model's output cannot drive the terminal.
pub fn layout(text: &str, width: usize, height: usize) -> Vec<String> {
    let (width, height) = (width.max(2), height.max(1));
    let mut lines = Vec::new();
    for source in text.split('\n') {
        let (mut line, mut used) = (String::new(), 0);
        for c in source.chars().flat_map(visible) {
            let columns = console::measure_text_width(c.encode_utf8(&mut [0; 4]));
            if used + columns > width {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += columns;
        }
        lines.push(line);
    }
    if lines.len() > height {
        let decided = |line: &String| line.chars().any(|c| c != SHADE && !c.is_whitespace());
        let last = lines.iter().rposition(decided).unwrap_or(0);
        // A third of the window looks ahead into what is still masked.
        let end = (last + 1 + height / 3).clamp(height, lines.len());
        lines.drain(end..);
        lines.drain(..end - height);
    }
    lines
}

/// How a character is shown: tabs as spaces, control characters as a dot, others as they are.
fn visible(c: char) -> impl Iterator<Item = char> {
    let (shown, times) = match c {
        '\t' => (' ', 4),
        c if c.is_control() || is_direction_mark(c) => ('·', 1),
        c => (c, 1),
    };
    std::iter::repeat_n(shown, times)
}

/// Characters that turn the direction of the text around them, and with it the canvas.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A progress bar on standard error; invisible away from a terminal.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar that counts steps.
    pub fn new(output: &Output, what: &'static str, total: usize) -> Self {
        Self::with_counts(output, what, total as u64, "{pos}/{len}")
    }

    /// A bar that counts bytes.
    pub fn of_bytes(output: &Output, what: &'static str, total: u64) -> Self {
        Self::with_counts(output, what, total, "{binary_bytes}/{binary_total_bytes}")
    }

    fn with_counts(output: &Output, what: &'static str, total: u64, counts: &str) -> Self {
        let target = if output.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(&format!("{{msg}} {{bar:30}} {counts}, {{eta}} left")) {
            bar.set_style(style);
        }
        bar.set_message(what);
        bar.tick();
        Bar(bar)
    }

    pub fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_the_width_and_at_newlines() {
        assert_eq!(layout("abcdefg\nxy\n\nz", 3, 99), ["abc", "def", "g", "xy", "", "z"]);
        assert_eq!(layout("", 3, 99), [""]);
    }

    #[test]
    fn wide_characters_take_two_columns_and_combining_ones_none() {
        assert_eq!(layout("漢字仮名", 5, 99), ["漢字", "仮名"]);
        assert_eq!(layout("e\u{301}e\u{301}e\u{301}e\u{301}", 3, 99), ["e\u{301}e\u{301}e\u{301}", "e\u{301}"]);
    }

    #[test]
    fn a_tall_text_is_cut_to_a_window_around_the_last_decided_line() {
        let rows: Vec<String> = (0..20).map(|i| if i < 9 { i.to_string() } else { "░".to_owned() }).collect();
        let window = layout(&rows.join("\n"), 10, 6);
        assert_eq!(window, ["5", "6", "7", "8", "░", "░"]);
        let start = layout(&vec!["░"; 20].join("\n"), 10, 6);
        assert_eq!(start.len(), 6);
        let full: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        assert_eq!(layout(&full.join("\n"), 10, 3), ["17", "18", "19"]);
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let lines = layout("a\x1b[2Jb\rc\u{7}\u{9b}d\u{202e}e\tf", 40, 9);
        assert_eq!(lines, ["a·[2Jb·c··d·e    f"]);
    }

    #[test]
    fn the_narrowest_terminal_still_gets_lines() {
        assert_eq!(layout("漢b", 0, 0).len(), 1);
    }

    #[test]
    fn time_left_extrapolates_from_the_steps_done() {
        assert_eq!(time_left(Duration::from_secs(10), 1, 4), ", 30 s left");
        assert_eq!(time_left(Duration::from_secs(100), 10, 40), ", 5 min left");
        assert_eq!(time_left(Duration::from_secs(100), 4, 4), "");
        assert_eq!(time_left(Duration::ZERO, 0, 4), "");
    }
}
