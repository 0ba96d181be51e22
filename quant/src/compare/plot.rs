//! Size against divergence as a picture, drawn here: a plotting crate would bring the system's fonts or a C library.

use std::path::Path;

use mmada::{Error, Result, RgbImage};

use super::font::{self, Point};

/// A file in the plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    pub name: String,
    pub bytes: u64,
    /// Mean KL divergence in nats; 0 is drawn at the lower edge, as a logarithmic axis has no place for it.
    pub kl: f64,
}

const WIDTH: u32 = 1280;
const HEIGHT: u32 = 800;
/// Of the frame, in pixels from the left and the top.
const LEFT: f32 = 150.0;
const RIGHT: f32 = 1240.0;
const TOP: f32 = 100.0;
const BOTTOM: f32 = 700.0;
/// Height of capitals.
const TITLE: f32 = 18.0;
const TEXT: f32 = 14.0;
const DOT: f32 = 7.0;
/// Most characters of a name.
const LONGEST: usize = 40;

type Color = [u8; 3];
const WHITE: Color = [255, 255, 255];
const BLACK: Color = [34, 34, 40];
const GRAY: Color = [110, 110, 120];
const GRID: Color = [226, 226, 232];
const FAINT: Color = [242, 242, 246];
pub(super) const BLUE: Color = [31, 98, 184];

/// Fails where a plot cannot be written to `path`, so that this is known before an hour of work.
///
/// # Errors
/// `InvalidArgument` for a name that does not end in `.png`, or a folder that does not exist.
pub fn check(path: &Path) -> Result<()> {
    let name = path.display();
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
        return Err(Error::invalid(format!("{name}: a plot is a PNG file, its name must end in .png")));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.is_none_or(Path::is_dir) && !path.is_dir() {
        true => Ok(()),
        false => Err(Error::invalid(format!("{name}: the plot cannot be written, there is no such folder"))),
    }
}

/// A point for every mark: size on the horizontal axis, mean KL divergence on the logarithmic vertical one.
pub fn draw(reference: &str, marks: &[Mark]) -> RgbImage {
    let mut canvas = Canvas::new();
    let (sizes, divergences) = (Sizes::of(marks), Decades::of(marks));
    canvas.text("KL divergence against size", (LEFT, 46.0), TITLE, BLACK);
    canvas.text(&format!("reference: {}", shorten(reference)), (LEFT, 78.0), TEXT, GRAY);
    divergences.draw(&mut canvas);
    sizes.draw(&mut canvas);
    for (from, to) in [((LEFT, TOP), (LEFT, BOTTOM)), ((LEFT, BOTTOM), (RIGHT, BOTTOM))] {
        canvas.stroke(&[[from, to]], 2.0, GRAY);
    }
    let points: Vec<Point> = marks.iter().map(|mark| (sizes.place(mark.bytes), divergences.place(mark.kl))).collect();
    for &point in &points {
        canvas.stroke(&[[point, point]], 2.0 * DOT, BLUE);
    }
    let names: Vec<String> = marks.iter().map(label).collect();
    for (name, at) in names.iter().zip(labels(&names, &points)) {
        canvas.text(name, at, TEXT, BLACK);
    }
    canvas.pixels
}

fn label(mark: &Mark) -> String {
    match mark.kl > 0.0 {
        true => shorten(&mark.name),
        false => format!("{} (KL 0)", shorten(&mark.name)),
    }
}

fn shorten(name: &str) -> String {
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}..", &name[..end]),
        None => name.to_owned(),
    }
}

/// The horizontal axis: sizes from a little below the smallest to a little above the largest.
struct Sizes {
    from: f64,
    to: f64,
    /// Between numbers, in bytes.
    step: f64,
}

impl Sizes {
    fn of(marks: &[Mark]) -> Self {
        let bytes = || marks.iter().map(|mark| mark.bytes as f64);
        let (least, most) = (bytes().fold(f64::INFINITY, f64::min), bytes().fold(0.0, f64::max));
        let least = least.min(most);
        let room = ((most - least) * 0.12).max(most * 0.02).max(1.0);
        let (from, to) = ((least - room).max(0.0), most + room);
        Sizes { from, to, step: round_step((to - from) / 8.0) }
    }

    fn place(&self, bytes: u64) -> f32 {
        let share = (bytes as f64 - self.from) / (self.to - self.from);
        LEFT + (RIGHT - LEFT) * share as f32
    }

    fn draw(&self, canvas: &mut Canvas) {
        let (unit, name) = if self.to >= 2e9 { (1e9, "GB") } else { (1e6, "MB") };
        let digits = (-(self.step / unit).log10().floor()).clamp(0.0, 6.0) as usize;
        let mut tick = (self.from / self.step).ceil() * self.step;
        while tick <= self.to {
            let x = self.place(tick as u64);
            canvas.stroke(&[[(x, TOP), (x, BOTTOM)]], 1.0, GRID);
            canvas.centered(&format!("{:.digits$}", tick / unit), (x, BOTTOM + 32.0), TEXT, BLACK);
            tick += self.step;
        }
        canvas.centered(&format!("size in {name}"), ((LEFT + RIGHT) / 2.0, BOTTOM + 74.0), TEXT, BLACK);
    }
}

/// 1, 2 or 5 times a power of ten, not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|&step| step >= least * 0.999).unwrap_or(10.0 * power)
}

/// The vertical axis: whole powers of ten around all divergences above 0.
struct Decades {
    from: i32,
    to: i32,
}

impl Decades {
    fn of(marks: &[Mark]) -> Self {
        let logs = || marks.iter().map(|mark| mark.kl).filter(|&kl| kl > 0.0 && kl.is_finite()).map(f64::log10);
        let (least, most) = (logs().fold(f64::INFINITY, f64::min), logs().fold(f64::NEG_INFINITY, f64::max));
        if least > most {
            return Decades { from: -6, to: 0 };
        }
        // Room for the points themselves, which have a size.
        let from = (least - 0.06).floor() as i32;
        Decades { from, to: ((most + 0.06).ceil() as i32).max(from + 1) }
    }

    fn place(&self, kl: f64) -> f32 {
        let share = (kl.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        BOTTOM - (BOTTOM - TOP) * share.clamp(0.0, 1.0) as f32
    }

    fn draw(&self, canvas: &mut Canvas) {
        let decades = self.to - self.from;
        for power in self.from..=self.to {
            if power < self.to && decades <= 8 {
                for n in 2..10 {
                    let y = self.place(f64::from(n) * 10f64.powi(power));
                    canvas.stroke(&[[(LEFT, y), (RIGHT, y)]], 1.0, FAINT);
                }
            }
            let y = self.place(10f64.powi(power));
            canvas.stroke(&[[(LEFT, y), (RIGHT, y)]], 1.0, GRID);
            let number = match power {
                -4..=3 => format!("{}", 10f64.powi(power)),
                _ => format!("1e{power}"),
            };
            let x = LEFT - 14.0 - font::width(&number, TEXT);
            canvas.text(&number, (x, y + TEXT / 2.0), TEXT, BLACK);
        }
        canvas.upwards("mean KL divergence in nats", (46.0, (TOP + BOTTOM) / 2.0), TEXT, BLACK);
    }
}

/// Where names stand: beside their points, and where they hide nothing if there is such a place.
fn labels(names: &[String], points: &[Point]) -> Vec<Point> {
    let mut taken: Vec<[f32; 4]> = points.iter().map(|&(x, y)| [x - DOT, y - DOT, x + DOT, y + DOT]).collect();
    let mut placed = Vec::new();
    for (name, &(x, y)) in names.iter().zip(points) {
        let (width, off) = (font::width(name, TEXT), DOT + 8.0);
        let (middle, right, left) = (y + TEXT / 2.0, x + off, x - off - width);
        let above = |n: f32| y - off - n * (TEXT + 6.0);
        let below = |n: f32| y + off + TEXT + n * (TEXT + 6.0);
        let centered = x - width / 2.0;
        let mut places = vec![(right, middle), (left, middle), (centered, above(0.0)), (centered, below(0.0))];
        places.extend((0..4).flat_map(|n| {
            let n = n as f32;
            [(right, above(n)), (right, below(n)), (left, above(n)), (left, below(n))]
        }));
        let area = |&(x, y): &Point| [x, y - TEXT - 3.0, x + width, y + 6.0];
        let free = |place: &&Point| {
            let [x0, y0, x1, y1] = area(place);
            let inside = x0 > LEFT && x1 < WIDTH as f32 - 4.0 && y0 > TOP - 20.0 && y1 < BOTTOM;
            inside && taken.iter().all(|t| x1 < t[0] || t[2] < x0 || y1 < t[1] || t[3] < y0)
        };
        let place = places.iter().find(free).unwrap_or(&places[0]);
        taken.push(area(place));
        placed.push(*place);
    }
    placed
}

struct Canvas {
    pixels: RgbImage,
}

impl Canvas {
    fn new() -> Self {
        let mut pixels = RgbImage::new(WIDTH, HEIGHT);
        pixels.pixels_mut().for_each(|pixel| pixel.0 = WHITE);
        Canvas { pixels }
    }

    /// Lines with round ends, blended once where they meet.
    fn stroke(&mut self, lines: &[[Point; 2]], width: f32, color: Color) {
        let ends = || lines.iter().flatten();
        let reach = width / 2.0 + 1.0;
        let least = ends().fold((f32::MAX, f32::MAX), |m, p| (m.0.min(p.0), m.1.min(p.1)));
        let most = ends().fold((f32::MIN, f32::MIN), |m, p| (m.0.max(p.0), m.1.max(p.1)));
        // Casts of what lies outside saturate; no lines give an empty range.
        let columns = (least.0 - reach) as u32..((most.0 + reach + 1.0) as u32).min(WIDTH);
        let rows = (least.1 - reach) as u32..((most.1 + reach + 1.0) as u32).min(HEIGHT);
        for y in rows {
            for x in columns.clone() {
                let center = (x as f32 + 0.5, y as f32 + 0.5);
                let near = lines.iter().map(|line| distance(center, line)).fold(f32::MAX, f32::min);
                let cover = (width / 2.0 + 0.5 - near).clamp(0.0, 1.0);
                for (old, new) in self.pixels.get_pixel_mut(x, y).0.iter_mut().zip(color) {
                    *old = (f32::from(*old) * (1.0 - cover) + f32::from(new) * cover).round() as u8;
                }
            }
        }
    }

    fn text(&mut self, text: &str, at: Point, size: f32, color: Color) {
        for letter in font::lines(text, at, size) {
            self.stroke(&letter, size / 8.0, color);
        }
    }

    fn centered(&mut self, text: &str, (x, y): Point, size: f32, color: Color) {
        self.text(text, (x - font::width(text, size) / 2.0, y), size, color);
    }

    /// Text that reads from the bottom to the top, its middle at `y`.
    fn upwards(&mut self, text: &str, (x, y): Point, size: f32, color: Color) {
        let from = y + font::width(text, size) / 2.0;
        for letter in font::lines(text, (0.0, 0.0), size) {
            let turn = |(u, v): Point| (x + v, from - u);
            let turned: Vec<[Point; 2]> = letter.into_iter().map(|[a, b]| [turn(a), turn(b)]).collect();
            self.stroke(&turned, size / 8.0, color);
        }
    }
}

/// From a point to the nearest of a line.
fn distance(p: Point, &[a, b]: &[Point; 2]) -> f32 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let length = dx * dx + dy * dy;
    let along = ((p.0 - a.0) * dx + (p.1 - a.1) * dy) / length;
    // A line of no length is its first point.
    let along = if length > 0.0 { along.clamp(0.0, 1.0) } else { 0.0 };
    (p.0 - a.0 - along * dx).hypot(p.1 - a.1 - along * dy)
}

/// What to call files in a plot: their names without the ending and without what all begin with, up to a `-`.
pub fn names(paths: &[&Path]) -> Vec<String> {
    let stem = |name: String| name.strip_suffix(".gguf").map(str::to_owned).unwrap_or(name);
    let stems: Vec<String> = super::report::names(paths).into_iter().map(stem).collect();
    let common = |name: &str, other: &String| name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let first = stems.first().map_or("", String::as_str);
    let shared = stems.iter().skip(1).map(|other| common(first, other)).min().unwrap_or(0);
    let shared = first.get(..shared).and_then(|start| start.rfind('-')).map_or(0, |at| at + 1);
    stems.iter().map(|stem| stem.get(shared..).filter(|rest| !rest.is_empty()).unwrap_or(stem).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(name: &str, bytes: u64, kl: f64) -> Mark {
        Mark { name: name.into(), bytes, kl }
    }

    fn marks() -> Vec<Mark> {
        vec![
            mark("Q8_0", 12_154_816, 0.000_12),
            mark("Q4_K_M", 7_900_000, 0.0061),
            mark("Q4_0", 7_850_000, 0.0105),
            mark("Q2_K", 6_100_000, 0.093),
        ]
    }

    /// Centers of the blue dots.
    fn dots(picture: &RgbImage) -> Vec<Point> {
        let blue = |p: &Point| picture.get_pixel(p.0 as u32, p.1 as u32).0 == BLUE;
        let all = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x as f32, y as f32)));
        let mut centers: Vec<(Point, f32)> = Vec::new();
        for p in all.filter(blue) {
            match centers.iter_mut().find(|(c, _)| (c.0 - p.0).hypot(c.1 - p.1) < 2.0 * DOT) {
                Some((c, n)) => {
                    *n += 1.0;
                    *c = (c.0 + (p.0 - c.0) / *n, c.1 + (p.1 - c.1) / *n);
                }
                None => centers.push((p, 1.0)),
            }
        }
        centers.iter().map(|c| c.0).collect()
    }

    #[test]
    fn every_file_is_a_dot_at_its_size_and_divergence() {
        let marks = marks();
        let picture = draw("f16.gguf", &marks);
        let (sizes, decades) = (Sizes::of(&marks), Decades::of(&marks));
        let dots = dots(&picture);
        assert_eq!(dots.len(), marks.len());
        for mark in &marks {
            let at = (sizes.place(mark.bytes), decades.place(mark.kl));
            assert!(dots.iter().any(|dot| (dot.0 - at.0).hypot(dot.1 - at.1) < 2.0), "{mark:?} {dots:?}");
        }
        // larger is further right, worse is further up
        assert!(sizes.place(marks[0].bytes) > sizes.place(marks[1].bytes));
        assert!(decades.place(marks[0].kl) > decades.place(marks[1].kl));
        assert!((decades.place(0.01) - decades.place(0.1) - (decades.place(0.001) - decades.place(0.01))).abs() < 1e-3);
    }

    #[test]
    fn names_and_numbers_are_written_beside_points_and_axes() {
        let (bare, named) = (draw("", &[mark("", 5_000_000, 0.01)]), draw("", &[mark("Q6_K", 5_000_000, 0.01)]));
        let changed: Vec<(u32, u32)> = bare
            .enumerate_pixels()
            .filter(|(x, y, pixel)| *pixel != named.get_pixel(*x, *y))
            .map(|(x, y, _)| (x, y))
            .collect();
        let dot = dots(&named)[0];
        assert!(changed.len() > 100);
        assert!(changed.iter().all(|&(x, y)| (x as f32 - dot.0).abs() < 90.0 && (y as f32 - dot.1).abs() < 30.0));
        let dark = |columns: std::ops::Range<u32>, rows: std::ops::Range<u32>| {
            rows.flat_map(|y| columns.clone().map(move |x| (x, y)))
                .filter(|&(x, y)| named.get_pixel(x, y).0[0] < 90)
                .count()
        };
        assert!(dark(60..LEFT as u32 - 5, 90..710) > 200 && dark(LEFT as u32..WIDTH, 715..740) > 200);
    }

    #[test]
    fn names_stand_apart_where_points_crowd() {
        let points: Vec<Point> = (0..6).map(|i| (600.0 + i as f32 * 4.0, 400.0 - i as f32 * 5.0)).collect();
        let names: Vec<String> = (0..6).map(|i| format!("Q{i}_K_M")).collect();
        let places = labels(&names, &points);
        for (i, a) in places.iter().enumerate() {
            for (b, name) in places[..i].iter().zip(&names) {
                let width = font::width(name, TEXT);
                assert!((a.0 - b.0).abs() > width - 20.0 || (a.1 - b.1).abs() > TEXT, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn what_no_axis_can_show_is_drawn_all_the_same() {
        for marks in [
            vec![],
            vec![mark("same", 5_000_000, 0.0)],
            vec![mark("a", 0, 1e-12), mark("b", u64::MAX, 50.0), mark("c", 7, f64::INFINITY)],
            vec![mark(&"long".repeat(99), 1_000_000, 0.01), mark("\u{fc}\u{1F600}", 1_000_000, 0.01)],
        ] {
            let picture = draw("r", &marks);
            assert!(marks.is_empty() || !dots(&picture).is_empty());
        }
        assert!(Decades::of(&[mark("same", 5, 0.0)]).place(0.0) == BOTTOM);
    }

    #[test]
    fn steps_are_round() {
        for (least, want) in [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (340.0, 500.0), (0.0501, 0.1)] {
            assert!((round_step(least) - want).abs() < 1e-9 * want, "{least}");
        }
    }

    #[test]
    fn files_are_called_by_what_tells_them_apart() {
        let called = |paths: &[&str]| names(&paths.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(called(&["m/shapes-Q4_K_M.gguf", "m/shapes-Q4_0.gguf"]), ["Q4_K_M", "Q4_0"]);
        assert_eq!(called(&["shapes-q8_0.gguf"]), ["shapes-q8_0"]);
        assert_eq!(called(&["a.gguf", "b.gguf"]), ["a", "b"]);
        assert_eq!(called(&["x-.gguf", "x-.gguf"]), ["x-", "x-"]);
        assert_eq!(called(&["ours/q.gguf", "theirs/q.gguf"]), ["ours/q", "theirs/q"]);
        assert_eq!(called(&["\u{e4}-1.gguf", "\u{e5}-1.gguf"]), ["\u{e4}-1", "\u{e5}-1"]);
    }

    #[test]
    fn a_plot_that_cannot_be_written_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("p.png")).unwrap();
        check(Path::new("p.PNG")).unwrap();
        for (path, reason) in [("p.jpg", ".png"), ("p", ".png"), ("none/p.png", "no such folder")] {
            assert!(check(&folder.path().join(path)).unwrap_err().to_string().contains(reason), "{path}");
        }
    }
}
