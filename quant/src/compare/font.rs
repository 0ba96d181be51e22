//! Letters as strokes of a pen, for the plot: no font file, no system library, sharp at every size.
//!
//! A glyph is drawn on a grid whose capital letters are 12 units high: y is 0 at their top, 4 at the top of small
//! letters, 12 on the line and 16 below it. Its strokes are separated by spaces; each is a list of points, a character
//! for x and one for y in base 36. `~` makes a stroke a quadratic B-spline that begins and ends at its end points, `@` a
//! closed one.

/// Height of capital letters in units.
pub const HEIGHT: f32 = 12.0;
/// Between letters.
const GAP: f32 = 4.0;
/// Pieces of line that a piece of a spline is drawn as.
const PIECES: usize = 8;

pub type Point = (f32, f32);

fn strokes(letter: char) -> &'static str {
    match letter {
        '0' => "@00707c0c",
        '1' => "13404c",
        '2' => "~030070750c 0c7c",
        '3' => "~0200606626 ~26767c0c09",
        '4' => "5c500878",
        '5' => "701005 ~0525757c0c0a",
        '6' => "@05757c0c ~61400109",
        '7' => "00702c",
        '8' => "@10606616 @06767c0c",
        '9' => "@00707707 ~1b3c7b73",
        'A' => "0c408c 1979",
        'B' => "0c0040 ~40707646 0646 ~46868c4c 4c0c",
        'C' => "~8380000c8c89",
        'D' => "4c0c0040 ~40808c4c",
        'E' => "70000c7c 0666",
        'F' => "70000c 0666",
        'G' => "~8380000c8c87 4787",
        'H' => "000c 808c 0686",
        'I' => "000c",
        'J' => "6069 ~696c0c09",
        'K' => "000c 8008 358c",
        'L' => "000c7c",
        'M' => "0c0047808c",
        'N' => "0c008c80",
        'O' => "@00808c0c",
        'P' => "0c0040 ~40808747 4707",
        'Q' => "@00808c0c 598d",
        'R' => "0c0040 ~40808646 4606 468c",
        'S' => "~83800006868c0c09",
        'T' => "0080 404c",
        'U' => "0008 ~080c8c88 8880",
        'V' => "004c80",
        'W' => "002c528ca0",
        'X' => "008c 800c",
        'Y' => "004680 464c",
        'Z' => "00800c8c",
        'a' => "@04747c0c 747c",
        'b' => "000c @04747c0c",
        'c' => "~6664040c6c6a",
        'd' => "707c @04747c0c",
        'e' => "0878 ~7874040c6c7a",
        'f' => "~502024 242c 0454",
        'g' => "@04747c0c 747d ~7d7g0g0e",
        'h' => "000c ~08047478 787c",
        'i' => "040c 0101",
        'j' => "242d ~2d2g0g 2121",
        'k' => "000c 6409 276c",
        'l' => "000a ~0a0c2c",
        'm' => "040c ~08045458 585c ~5854a4a8 a8ac",
        'n' => "040c ~08047478 787c",
        'o' => "@04747c0c",
        'p' => "040g @04747c0c",
        'q' => "747g @04747c0c",
        'r' => "040c ~08044454",
        's' => "~66640408686c0c0a",
        't' => "2029 ~292c5c 0454",
        'u' => "0408 ~080c7c78 747c",
        'v' => "043c64",
        'w' => "042c456c84",
        'x' => "046c 640c",
        'y' => "043b 641g",
        'z' => "04640c6c",
        '.' => "0b0c",
        ',' => "1b0e",
        ':' => "0505 0b0c",
        '-' => "0747",
        '_' => "0e7e",
        '+' => "0767 343a",
        '=' => "0565 0969",
        '/' => "0e60",
        '|' => "000e",
        '(' => "~30040a3e",
        ')' => "~00343a0e",
        '[' => "20000e2e",
        ']' => "00202e0e",
        '<' => "64086c",
        '>' => "04680c",
        '%' => "0c80 @00303404 @58888c5c",
        ' ' => "",
        _ => "00606c0c00", // a box, for what has no glyph
    }
}

/// The lines of a letter, and its width, in units.
fn glyph(letter: char) -> (Vec<[Point; 2]>, f32) {
    let mut lines = Vec::new();
    let mut width = if letter == ' ' { 2.0f32 } else { 0.0 };
    for stroke in strokes(letter).split(' ') {
        let digits: Vec<f32> = stroke.chars().filter_map(|c| c.to_digit(36)).map(|d| d as f32).collect();
        let points: Vec<Point> = digits.as_chunks::<2>().0.iter().map(|&[x, y]| (x, y)).collect();
        width = points.iter().fold(width, |width, p| width.max(p.0));
        let path = match stroke.chars().next() {
            Some('~') => open_spline(&points),
            Some('@') => closed_spline(&points),
            _ => points,
        };
        lines.extend(path.windows(2).map(|w| [w[0], w[1]]));
    }
    (lines, width)
}

fn middle(a: Point, b: Point) -> Point {
    ((a.0 + b.0) / 2.0, (a.1 + b.1) / 2.0)
}

/// Adds the parabola from `a` to `c` whose tangents meet in `b`, without `a`.
fn bend(path: &mut Vec<Point>, a: Point, b: Point, c: Point) {
    path.extend((1..=PIECES).map(|i| {
        let t = i as f32 / PIECES as f32;
        let (u, v, w) = ((1.0 - t) * (1.0 - t), 2.0 * t * (1.0 - t), t * t);
        (u * a.0 + v * b.0 + w * c.0, u * a.1 + v * b.1 + w * c.1)
    }));
}

fn open_spline(points: &[Point]) -> Vec<Point> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return Vec::new() };
    let mut path = vec![first];
    let mut from = first;
    for (i, w) in points.windows(2).enumerate().skip(1) {
        let to = if i + 2 == points.len() { last } else { middle(w[0], w[1]) };
        bend(&mut path, from, w[0], to);
        from = to;
    }
    path
}

fn closed_spline(points: &[Point]) -> Vec<Point> {
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else { return Vec::new() };
    let mut from = middle(last, first);
    let mut path = vec![from];
    for (i, &corner) in points.iter().enumerate() {
        let to = middle(corner, points[(i + 1) % points.len()]);
        bend(&mut path, from, corner, to);
        from = to;
    }
    path
}

/// Width of a text whose capitals are `size` high.
pub fn width(text: &str, size: f32) -> f32 {
    let units: f32 = text.chars().map(|letter| glyph(letter).1 + GAP).sum();
    (units - GAP).max(0.0) * size / HEIGHT
}

/// The lines of a text, letter by letter: the first begins at `x`, and all stand on a line at `y`.
pub fn lines(text: &str, (x, y): Point, size: f32) -> Vec<Vec<[Point; 2]>> {
    let scale = size / HEIGHT;
    let mut at = x;
    text.chars()
        .map(|letter| {
            let (lines, width) = glyph(letter);
            let place = |(u, v): Point| (at + u * scale, y + (v - HEIGHT) * scale);
            let placed = lines.into_iter().map(|[a, b]| [place(a), place(b)]).collect();
            at += (width + GAP) * scale;
            placed
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_of_a_file_name_has_a_glyph_of_its_own() {
        let letters = ('0'..='9').chain('A'..='Z').chain('a'..='z').chain(".,:-_+=/|()[]<>%".chars());
        let glyphs: Vec<_> = letters.map(|letter| (letter, glyph(letter))).collect();
        let missing = glyph('\u{1F600}');
        for (i, (letter, drawn)) in glyphs.iter().enumerate() {
            assert!(!drawn.0.is_empty() && drawn != &missing, "{letter}");
            let inside = |p: Point| (0.0..=10.0).contains(&p.0) && (0.0..=16.0).contains(&p.1);
            assert!(drawn.0.iter().all(|[a, b]| inside(*a) && inside(*b)), "{letter}");
            let same = glyphs[..i].iter().find(|other| other.1.0 == drawn.0);
            assert!(same.is_none(), "{letter} looks like {same:?}");
        }
        assert!(glyph(' ').0.is_empty() && !missing.0.is_empty());
    }

    #[test]
    fn splines_begin_and_end_where_they_should() {
        let open = open_spline(&[(0.0, 3.0), (0.0, 0.0), (8.0, 0.0), (8.0, 8.0)]);
        assert_eq!((open[0], open[PIECES], open[2 * PIECES]), ((0.0, 3.0), (4.0, 0.0), (8.0, 8.0)));
        let closed = closed_spline(&[(0.0, 0.0), (8.0, 0.0), (8.0, 12.0), (0.0, 12.0)]);
        assert_eq!((closed[0], closed[4 * PIECES]), ((0.0, 6.0), (0.0, 6.0)));
        assert!(closed.contains(&(4.0, 0.0)) && closed.contains(&(8.0, 6.0)) && closed.contains(&(4.0, 12.0)));
    }

    #[test]
    fn text_takes_the_width_that_is_said_and_scales() {
        let reach = |size: f32| {
            let all = lines("Q4_K: 0.5 %", (10.0, 50.0), size);
            all.iter().flatten().flatten().fold(0.0f32, |reach, p| reach.max(p.0))
        };
        for size in [12.0, 24.0] {
            assert!((reach(size) - 10.0 - width("Q4_K: 0.5 %", size)).abs() < 1e-3);
        }
        assert_eq!((width("", 12.0), width("I", 12.0)), (0.0, 0.0));
    }
}
