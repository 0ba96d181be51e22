//! Animations of a generation (`--trace FILE.gif`): a picture, or an answer, as it looked after every step.
//!
//! A picture's frames are written as they come. An answer's frames are kept until the end, when the text behind
//! every position is known: then each position can keep its place from the first frame to the last, as wide as the
//! text that it will hold.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, Frame, Rgb, RgbImage, Rgba, RgbaImage};
use mmada::{Error, Result};
use tempfile::NamedTempFile;

use crate::font;

/// How long a frame stands.
const STEP_MILLISECONDS: u32 = 150;
/// How long the last frame stands before the animation begins again.
const RESULT_MILLISECONDS: u32 = 2500;
/// Pictures with a smaller side are enlarged by a whole factor until it has at least this many pixels,
const SMALLEST_SIDE: u32 = 256;
/// but not beyond this many on the larger side.
const LARGEST_ENLARGED_SIDE: u32 = 2048;
/// A GIF counts pixels in 16 bits.
const LARGEST_SIDE: usize = u16::MAX as usize;
/// Trade of the encoder between the quality of the palette (1) and speed (30); pictures of few colors are exact.
const PALETTE_SPEED: i32 = 10;

/// An animation that is being made. The file appears when it is finished, whole; an unfinished one leaves nothing.
pub struct Trace {
    file: GifFile,
    kind: Kind,
}

enum Kind {
    /// The frame that was pushed last: how long it stands depends on whether another follows.
    Image(Option<RgbaImage>),
    Text(Vec<Vec<Cell>>),
}

/// A position of an answer at some step.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The text of the token that stands there; empty for a special token.
    pub text: String,
    pub state: CellState,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellState {
    /// Not decided yet; the text does not count.
    Masked,
    /// Decided by the step that this canvas shows.
    New,
    /// Decided before.
    Old,
}

impl Trace {
    /// Begins an animation of a picture. Fails if the file cannot be written.
    pub fn image(path: &Path) -> Result<Trace> {
        Ok(Trace { file: GifFile::create(path)?, kind: Kind::Image(None) })
    }

    /// Begins an animation of an answer. Fails if the file cannot be written.
    pub fn text(path: &Path) -> Result<Trace> {
        Ok(Trace { file: GifFile::create(path)?, kind: Kind::Text(Vec::new()) })
    }

    /// Adds a picture; all must have the same size.
    pub fn push_frame(&mut self, picture: &RgbImage) -> Result<()> {
        let Kind::Image(pending) = &mut self.kind else {
            return Err(Error::Internal("a picture was added to the trace of an answer".into()));
        };
        let frame = enlarged(picture);
        if let Some(before) = pending.take() {
            if before.dimensions() != frame.dimensions() {
                return Err(Error::Internal("the pictures of a trace differ in size".into()));
            }
            self.file.write(before, STEP_MILLISECONDS)?;
        }
        *pending = Some(frame);
        Ok(())
    }

    /// Adds the state of an answer; all must have the same number of positions.
    pub fn push_canvas(&mut self, cells: &[Cell]) -> Result<()> {
        let Kind::Text(canvases) = &mut self.kind else {
            return Err(Error::Internal("an answer was added to the trace of a picture".into()));
        };
        if canvases.first().is_some_and(|first| first.len() != cells.len()) {
            return Err(Error::Internal("the canvases of a trace differ in length".into()));
        }
        canvases.push(cells.to_vec());
        Ok(())
    }

    /// Writes what is left and puts the file in its place. Fails if nothing was added.
    pub fn finish(mut self) -> Result<()> {
        match self.kind {
            Kind::Image(pending) => {
                let last = pending.ok_or_else(|| self.file.error("there is no step to show"))?;
                self.file.write(last, RESULT_MILLISECONDS)?;
            }
            Kind::Text(canvases) => {
                let last = canvases.last().ok_or_else(|| self.file.error("there is no step to show"))?;
                let page = Page::new(last);
                let (width, height) = page.size();
                if height > LARGEST_SIDE {
                    let reason = format!("the answer would be {width}x{height} pixels, more than a GIF can hold");
                    return Err(self.file.error(reason));
                }
                for (index, canvas) in canvases.iter().enumerate() {
                    let is_last = index + 1 == canvases.len();
                    let duration = if is_last { RESULT_MILLISECONDS } else { STEP_MILLISECONDS };
                    self.file.write(page.draw(canvas), duration)?;
                }
            }
        }
        self.file.finish()
    }
}

/// The picture with an opaque alpha channel, as the encoder wants it, its pixels blown up to squares if it is small.
fn enlarged(picture: &RgbImage) -> RgbaImage {
    let (width, height) = picture.dimensions();
    let most = (LARGEST_ENLARGED_SIDE / width.max(height).max(1)).max(1);
    let factor = SMALLEST_SIDE.div_ceil(width.min(height).max(1)).min(most);
    RgbaImage::from_fn(width * factor, height * factor, |x, y| {
        let Rgb([r, g, b]) = *picture.get_pixel(x / factor, y / factor);
        Rgba([r, g, b, 255])
    })
}

/// A GIF under way, in a temporary file beside its target.
struct GifFile {
    target: PathBuf,
    part: NamedTempFile,
    encoder: GifEncoder<Shared>,
    encoded: Shared,
}

impl GifFile {
    fn create(target: &Path) -> Result<GifFile> {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let part = part_in(folder).map_err(|e| Error::io(target.display(), e))?;
        let encoded = Shared::default();
        let mut encoder = GifEncoder::new_with_speed(encoded.clone(), PALETTE_SPEED);
        encoder.set_repeat(Repeat::Infinite).map_err(|e| Error::image(target.display(), e))?;
        Ok(GifFile { target: target.to_owned(), part, encoder, encoded })
    }

    fn write(&mut self, frame: RgbaImage, milliseconds: u32) -> Result<()> {
        let frame = Frame::from_parts(frame, 0, 0, Delay::from_numer_denom_ms(milliseconds, 1));
        self.encoder.encode_frame(frame).map_err(|e| self.error(e))?;
        self.part.write_all(&self.encoded.take()).map_err(|e| Error::io(self.target.display(), e))
    }

    fn finish(self) -> Result<()> {
        let GifFile { target, mut part, encoder, encoded } = self;
        drop(encoder); // writes the end of the file
        let written = part.write_all(&encoded.take()).and_then(|()| part.as_file().sync_all());
        written.map_err(|e| Error::io(target.display(), e))?;
        part.persist(&target).map_err(|e| Error::io(target.display(), e.error))?;
        Ok(())
    }

    fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::image(self.target.display(), reason)
    }
}

/// What the encoder has written and the file has not. The encoder ends the file when it is dropped, where it cannot
/// report that the disk is full; memory has no such trouble.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Vec<u8> {
        self.0.take()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A temporary file that will have the usual permissions of a new file when it is renamed.
fn part_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666); // less the umask
    #[cfg(unix)]
    builder.permissions(permissions);
    builder.prefix(".mmada-").suffix(".part").tempfile_in(folder)
}

/// Characters in a line.
const COLUMNS: usize = 64;
/// A pixel of the font is a square of this side.
const SCALE: usize = 2;
/// A character with the space around it, in pixels of the font.
const CELL_WIDTH: usize = font::WIDTH + 1;
const CELL_HEIGHT: usize = font::HEIGHT + 3;
/// Around the page, in pixels of the picture.
const MARGIN: usize = 16;

const PAPER: Rgba<u8> = Rgba([22, 24, 30, 255]);
const SHADE: Rgba<u8> = Rgba([58, 64, 80, 255]);
const INK: Rgba<u8> = Rgba([230, 231, 235, 255]);
const DOT: Rgba<u8> = Rgba([96, 102, 118, 255]);
const HIGHLIGHT: Rgba<u8> = Rgba([246, 196, 83, 255]);
const INK_ON_HIGHLIGHT: Rgba<u8> = Rgba([22, 24, 30, 255]);

/// Where every character of the finished answer stands.
struct Page {
    slots: Vec<Slot>,
    rows: usize,
}

/// The place of a character.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Slot {
    cell: usize,
    character: Option<char>, // none for a position without text: a special token, or one never decided
    column: usize,
    row: usize,
    is_last: bool, // of its cell
}

impl Page {
    /// Lays out the answer's last state: lines are broken between words, and inside a word that fills a line.
    fn new(cells: &[Cell]) -> Page {
        let characters: Vec<(usize, Option<char>)> =
            cells.iter().enumerate().flat_map(|(index, cell)| characters_of(cell).map(move |c| (index, c))).collect();
        let is_letter = |&(_, c): &(usize, Option<char>)| c.is_some_and(|c| !c.is_whitespace());
        let (mut column, mut row) = (0, 0);
        let mut slots: Vec<Slot> = Vec::with_capacity(characters.len());
        for (index, &(cell, character)) in characters.iter().enumerate() {
            let begins_a_word = is_letter(&characters[index]) && (index == 0 || !is_letter(&characters[index - 1]));
            let word = characters[index..].iter().take(COLUMNS + 1).take_while(|c| is_letter(c)).count();
            let is_cut = begins_a_word && word <= COLUMNS && column + word > COLUMNS;
            if is_cut || column == COLUMNS {
                (column, row) = (0, row + 1);
            }
            let is_last = characters.get(index + 1).is_none_or(|&(next, _)| next != cell);
            slots.push(Slot { cell, character, column, row, is_last });
            column += 1;
            if character == Some('\n') {
                (column, row) = (0, row + 1);
            }
        }
        let rows = slots.last().map_or(1, |slot| slot.row + 1);
        Page { slots, rows }
    }

    /// Width and height in pixels.
    fn size(&self) -> (usize, usize) {
        (COLUMNS * CELL_WIDTH * SCALE + 2 * MARGIN, self.rows * CELL_HEIGHT * SCALE + 2 * MARGIN)
    }

    /// The page as it stood at some step, with the places of its end.
    fn draw(&self, cells: &[Cell]) -> RgbaImage {
        let (width, height) = self.size();
        let mut picture = RgbaImage::from_pixel(width as u32, height as u32, PAPER);
        for slot in &self.slots {
            let Some(cell) = cells.get(slot.cell) else { continue };
            match cell.state {
                CellState::Masked => slot.shade(&mut picture),
                CellState::New => slot.write(&mut picture, Some(HIGHLIGHT), INK_ON_HIGHLIGHT, INK_ON_HIGHLIGHT),
                CellState::Old => slot.write(&mut picture, None, INK, DOT),
            }
        }
        picture
    }
}

/// The characters that a cell takes on the page; at least one, so that every position can be seen.
fn characters_of(cell: &Cell) -> impl Iterator<Item = Option<char>> {
    let text = if cell.state == CellState::Masked { "" } else { &cell.text };
    text.chars().map(Some).chain(text.is_empty().then_some(None))
}

impl Slot {
    /// A position's box leaves a gap to its neighbours, so that positions can be counted.
    fn shade(self, picture: &mut RgbaImage) {
        let width = if self.is_last { font::WIDTH } else { CELL_WIDTH };
        self.fill(picture, 0..width, 0..CELL_HEIGHT - 2, SHADE);
    }

    fn write(self, picture: &mut RgbaImage, paper: Option<Rgba<u8>>, ink: Rgba<u8>, dot: Rgba<u8>) {
        if let Some(paper) = paper {
            self.fill(picture, 0..CELL_WIDTH, 0..CELL_HEIGHT - 1, paper);
        }
        match self.character {
            None => self.fill(picture, 2..3, 4..5, dot),
            Some(c) if c.is_whitespace() => {}
            Some(c) => {
                for (x, y) in (0..font::HEIGHT).flat_map(|y| (0..font::WIDTH).map(move |x| (x, y))) {
                    if font::pixel(c, x, y) {
                        self.fill(picture, x..x + 1, y + 1..y + 2, ink);
                    }
                }
            }
        }
    }

    /// Fills a rectangle of the slot, given in pixels of the font.
    fn fill(self, picture: &mut RgbaImage, x: std::ops::Range<usize>, y: std::ops::Range<usize>, color: Rgba<u8>) {
        let (left, top) = (MARGIN + self.column * CELL_WIDTH * SCALE, MARGIN + self.row * CELL_HEIGHT * SCALE);
        for y in top + y.start * SCALE..top + y.end * SCALE {
            for x in left + x.start * SCALE..left + x.end * SCALE {
                picture.put_pixel(x as u32, y as u32, color);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::BufReader;

    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;

    use super::*;

    fn frames(path: &Path) -> Vec<Frame> {
        GifDecoder::new(BufReader::new(File::open(path).unwrap())).unwrap().into_frames().collect_frames().unwrap()
    }

    fn milliseconds(frame: &Frame) -> u32 {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        numerator / denominator
    }

    fn cell(text: &str, state: CellState) -> Cell {
        Cell { text: text.into(), state }
    }

    /// An answer as it fills from its end to its beginning, one position at a step.
    fn canvases(texts: &[&str]) -> Vec<Vec<Cell>> {
        let count = texts.len();
        let state = |position: usize, step: usize| match (count - 1 - position).cmp(&step) {
            std::cmp::Ordering::Less => CellState::Old,
            std::cmp::Ordering::Equal => CellState::New,
            std::cmp::Ordering::Greater => CellState::Masked,
        };
        let canvas = |step| (0..count).map(|position| cell(texts[position], state(position, step))).collect();
        (0..count).map(canvas).collect()
    }

    #[test]
    fn an_animated_picture_decodes_to_its_frames_enlarged_and_holds_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.gif");
        let pictures: Vec<RgbImage> = (0..3u8)
            .map(|i| RgbImage::from_fn(24, 17, |x, y| Rgb([i * 90, (x / 6) as u8 * 60, (y / 5) as u8 * 70])))
            .collect();
        let mut trace = Trace::image(&path).unwrap();
        for picture in &pictures {
            trace.push_frame(picture).unwrap();
        }
        assert!(!path.exists(), "the file must appear whole");
        trace.finish().unwrap();
        let frames = frames(&path);
        assert_eq!(frames.iter().map(milliseconds).collect::<Vec<_>>(), [150, 150, 2500]);
        for (frame, picture) in frames.iter().zip(&pictures) {
            // 16 is the least factor that brings 17 pixels to 256.
            assert_eq!(frame.buffer().dimensions(), (24 * 16, 17 * 16));
            for (x, y, Rgb([r, g, b])) in picture.enumerate_pixels() {
                assert_eq!(frame.buffer().get_pixel(x * 16 + 15, y * 16 + 15), &Rgba([*r, *g, *b, 255]));
            }
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the animation is left");
    }

    #[test]
    fn an_animated_answer_has_a_frame_per_step_all_of_one_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answer.gif");
        let texts = ["A", " small", " pink", " star", "\n", "on", " a", " black", " back", "ground", ".", "", ""];
        let mut trace = Trace::text(&path).unwrap();
        let canvases = canvases(&texts);
        for canvas in &canvases {
            trace.push_canvas(canvas).unwrap();
        }
        trace.finish().unwrap();
        let frames = frames(&path);
        assert_eq!(frames.len(), texts.len());
        let size = (64 * 12 + 32, 2 * 24 + 32);
        assert!(frames.iter().all(|frame| frame.buffer().dimensions() == size));
        assert_eq!(milliseconds(&frames[texts.len() - 1]), 2500);
        let count = |frame: &Frame, color: Rgba<u8>| frame.buffer().pixels().filter(|&&pixel| pixel == color).count();
        // The first frame shows one new position and boxes; the last the first letter, which came last, and no box.
        assert!(count(&frames[0], SHADE) > 40 * 100 && count(&frames[0], INK) == 0);
        let last = &frames[texts.len() - 1];
        assert!(count(last, SHADE) == 0 && count(last, HIGHLIGHT) > 100 && count(last, INK) > 1000);
    }

    #[test]
    fn lines_break_between_words_and_inside_a_word_that_fills_a_line() {
        let place = |page: &Page, index: usize| (page.slots[index].column, page.slots[index].row);
        let page = |texts: &[&str]| Page::new(&texts.iter().map(|t| cell(t, CellState::Old)).collect::<Vec<_>>());
        let filler = "x".repeat(60);
        // "back" and "ground" are one word, which does not fit behind the filler.
        let broken = page(&[&filler, " back", "ground"]);
        assert_eq!((place(&broken, 60), place(&broken, 61), broken.rows), ((60, 0), (0, 1), 2));
        let long = page(&["ab ", &"y".repeat(70), "z"]);
        assert_eq!((place(&long, 3), place(&long, 64), place(&long, 73), long.rows), ((3, 0), (0, 1), (9, 1), 2));
        let lines = page(&["a\n", "\n", "b"]);
        assert_eq!((place(&lines, 2), place(&lines, 3), lines.rows), ((0, 1), (0, 2), 3));
        // Positions without text take a place each, and break anywhere.
        let empty = page(&[""; 130]);
        assert_eq!((empty.slots.len(), empty.rows), (130, 3));
        let exact = page(&[&"w".repeat(64), "\n", "v"]);
        assert_eq!((place(&exact, 63), exact.slots[65].column), ((63, 0), 0));
    }

    #[test]
    fn a_trace_that_cannot_be_written_or_has_no_step_says_so_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none/a.gif");
        let error = Trace::image(&missing).err().unwrap();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("a.gif"), "{error}");
        let path = folder.path().join("b.gif");
        for trace in [Trace::image(&path).unwrap(), Trace::text(&path).unwrap()] {
            let error = trace.finish().unwrap_err().to_string();
            assert!(error.contains("b.gif") && error.contains("no step"), "{error}");
        }
        let mut abandoned = Trace::image(&path).unwrap();
        abandoned.push_frame(&RgbImage::from_pixel(8, 8, Rgb([9, 8, 7]))).unwrap();
        drop(abandoned);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_answer_too_tall_for_a_gif_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut trace = Trace::text(&folder.path().join("tall.gif")).unwrap();
        trace.push_canvas(&vec![cell("\n", CellState::Old); 2800]).unwrap();
        let error = trace.finish().unwrap_err().to_string();
        assert!(error.contains("more than a GIF can hold"), "{error}");
    }

    #[test]
    fn frames_that_do_not_go_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut pictures = Trace::image(&folder.path().join("a.gif")).unwrap();
        pictures.push_frame(&RgbImage::new(300, 300)).unwrap();
        assert!(pictures.push_frame(&RgbImage::new(300, 310)).is_err());
        assert!(pictures.push_canvas(&[cell("a", CellState::New)]).is_err());
        let mut answer = Trace::text(&folder.path().join("b.gif")).unwrap();
        answer.push_canvas(&[cell("a", CellState::New)]).unwrap();
        assert!(answer.push_canvas(&[]).is_err());
        assert!(answer.push_frame(&RgbImage::new(300, 300)).is_err());
    }
}
