//! The judge of drawn scenes: which background a 64x64 picture has, and the color and shape of the object at
//! every place where the scene says there is one. It is the judge that scored the reference implementation
//! (numpy's median and percentile, Pillow's bilinear reduction) again: the same verdicts, but for outlines that two
//! shapes explain equally well to the last bit.

use image::RgbImage;

use super::world::{BACKGROUNDS, COLORS, SHAPES, SIDE, Scene};

/// Outlines are compared at this size.
const GRID: usize = 24;
/// A pixel farther than this from the background (Euclidean, in RGB) belongs to an object.
const OBJECT_DISTANCE: f64 = 60.0;
/// Fewer pixels than this are no object.
const SMALLEST_OBJECT: usize = 12;

/// What stands at a place: color and shape, or nothing.
pub type Finding = Option<(&'static str, &'static str)>;

/// How well a picture shows a scene.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Background, colors and shapes are all right.
    pub all_right: bool,
    /// The share of them that is.
    pub share: f64,
}

pub struct Judge {
    templates: Vec<Template>,
}

/// An ideal outline.
struct Template {
    shape: usize, // into SHAPES
    width_to_height: f64,
    grid: Grid,
}

/// An outline brought to 24x24, 0 outside and 255 inside.
type Grid = [u8; GRID * GRID];

impl Judge {
    /// Reads the templates that `scripts/make-judge-templates.py` wrote.
    pub fn new(templates: &str) -> Result<Judge, String> {
        let mut lines = templates.lines();
        let mut found = Vec::new();
        while let Some(head) = lines.next() {
            let template =
                Template::read(head, &mut lines).ok_or_else(|| format!("judge template {head:?} is damaged"))?;
            found.push(template);
        }
        let missing = (0..SHAPES.len()).find(|&shape| found.iter().all(|t| t.shape != shape));
        match missing {
            Some(shape) => Err(format!("no judge template of a {}", SHAPES[shape])),
            None => Ok(Judge { templates: found }),
        }
    }

    /// What the picture shows, given how many objects stand where (`one`, `left of`, `above`, `row`).
    ///
    /// # Panics
    /// When the picture is not 64x64.
    pub fn look(&self, picture: &RgbImage, layout: &str) -> (&'static str, Vec<Finding>) {
        assert_eq!(picture.dimensions(), (SIDE as u32, SIDE as u32), "the judge knows pictures of {SIDE}x{SIDE} only");
        let pixel = |x: usize, y: usize| picture.get_pixel(x as u32, y as u32).0.map(f64::from);
        // Row 0, the last row, column 0, the last column: corners count twice.
        let edge = (0..SIDE).flat_map(|i| [pixel(i, 0), pixel(i, SIDE - 1), pixel(0, i), pixel(SIDE - 1, i)]).collect();
        let background = channel_medians(edge);
        let distance = |x: usize, y: usize| squared_distance(pixel(x, y), background).sqrt();
        let findings = places(layout).iter().map(|place| self.object(place, &pixel, &distance)).collect();
        (nearest(&BACKGROUNDS, background), findings)
    }

    /// Compares what the picture shows with what the scene says.
    pub fn score(&self, picture: &RgbImage, scene: &Scene) -> Verdict {
        let (background, findings) = self.look(picture, &scene.layout);
        let mut right = vec![background == scene.background];
        for (finding, (color, shape)) in findings.iter().zip(&scene.objects) {
            right.push(finding.is_some_and(|(seen, _)| seen == color));
            right.push(finding.is_some_and(|(_, seen)| seen == shape));
        }
        let count = right.iter().filter(|&&r| r).count();
        Verdict { all_right: count == right.len(), share: count as f64 / right.len() as f64 }
    }

    /// The object within a place: its color is the median of its solid core, its shape the best template's.
    fn object(
        &self,
        place: &Place,
        pixel: &impl Fn(usize, usize) -> [f64; 3],
        distance: &impl Fn(usize, usize) -> f64,
    ) -> Finding {
        let mut mask = Mask { columns: SIDE, cells: vec![false; SIDE * SIDE] };
        let mut members = Vec::new(); // column, row and distance of the object's pixels
        for y in place.top..place.bottom {
            for x in place.left..place.right {
                let d = distance(x, y);
                if d > OBJECT_DISTANCE {
                    mask.cells[y * SIDE + x] = true;
                    members.push((x, y, d));
                }
            }
        }
        if members.len() < SMALLEST_OBJECT {
            return None;
        }
        // Pixels at the rim are mixed with the background and would dull the color.
        let solid = 0.6 * percentile(members.iter().map(|&(.., d)| d).collect(), 0.8);
        let core = members.iter().filter(|&&(.., d)| d > solid).map(|&(x, y, _)| pixel(x, y)).collect();
        Some((nearest(&COLORS, channel_medians(core)), SHAPES[self.shape(&mask)?]))
    }

    /// The shape whose best template agrees most with the outline; the first of equals.
    fn shape(&self, mask: &Mask) -> Option<usize> {
        let grid = mask.cropped()?.reduced();
        let width_to_height = mask.used_columns() as f64 / mask.used_rows() as f64;
        let mut best: Option<(f64, usize)> = None;
        for template in &self.templates {
            let agreement = template.agreement(&grid, width_to_height);
            // Templates are listed by shape, so that a later shape wins only by agreeing more.
            if best.is_none_or(|(most, _)| agreement > most) {
                best = Some((agreement, template.shape));
            }
        }
        best.map(|(_, shape)| shape)
    }
}

impl Template {
    /// `head` is `shape radius columns rows`; the rows follow.
    fn read<'a>(head: &str, lines: &mut impl Iterator<Item = &'a str>) -> Option<Template> {
        let [shape, _radius, columns, rows] = head.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let shape = SHAPES.iter().position(|&name| name == shape)?;
        let (columns, rows): (usize, usize) = (columns.parse().ok()?, rows.parse().ok()?);
        let mut cells = Vec::new();
        for _ in 0..rows {
            let row = lines.next()?;
            cells.extend(row.bytes().map(|cell| cell == b'#'));
            if row.len() != columns || row.bytes().any(|cell| cell != b'#' && cell != b'.') {
                return None;
            }
        }
        let mask = Mask { columns, cells }.cropped()?;
        Some(Template { shape, width_to_height: columns as f64 / rows as f64, grid: mask.reduced() })
    }

    /// 1 for the same outline, less for every differing pixel and for another ratio of width to height.
    fn agreement(&self, grid: &Grid, width_to_height: f64) -> f64 {
        let difference: u32 = grid.iter().zip(&self.grid).map(|(&a, &b)| u32::from(a.abs_diff(b))).sum();
        let mean = f64::from(difference) / 255.0 / (GRID * GRID) as f64;
        1.0 - mean * 2.0 - 0.5 * (width_to_height / self.width_to_height).ln().abs()
    }
}

/// A rectangle of pixels; right and bottom are outside.
struct Place {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

/// Where objects stand in a layout, in the order in which the scene names them.
fn places(layout: &str) -> Vec<Place> {
    let place = |left, top, right, bottom| Place { left, top, right, bottom };
    match layout {
        "one" => vec![place(2, 2, 62, 62)],
        "left of" => vec![place(0, 8, 32, 56), place(32, 8, 64, 56)],
        "above" => vec![place(8, 0, 56, 32), place(8, 32, 56, 64)],
        _ => vec![place(0, 14, 22, 50), place(22, 14, 43, 50), place(43, 14, 64, 50)],
    }
}

/// Which pixels belong to an object, row by row.
struct Mask {
    columns: usize,
    cells: Vec<bool>,
}

impl Mask {
    fn rows(&self) -> usize {
        self.cells.len() / self.columns
    }
    fn column_is_used(&self, x: usize) -> bool {
        (0..self.rows()).any(|y| self.cells[y * self.columns + x])
    }
    fn row_is_used(&self, y: usize) -> bool {
        self.cells[y * self.columns..(y + 1) * self.columns].contains(&true)
    }
    fn used_columns(&self) -> usize {
        (0..self.columns).filter(|&x| self.column_is_used(x)).count()
    }
    fn used_rows(&self) -> usize {
        (0..self.rows()).filter(|&y| self.row_is_used(y)).count()
    }

    /// The smallest rectangle that holds every pixel; None when there are too few of them to be an object.
    fn cropped(&self) -> Option<Mask> {
        if self.cells.iter().filter(|&&cell| cell).count() < SMALLEST_OBJECT {
            return None;
        }
        let left = (0..self.columns).find(|&x| self.column_is_used(x))?;
        let right = (0..self.columns).rfind(|&x| self.column_is_used(x))?;
        let top = (0..self.rows()).find(|&y| self.row_is_used(y))?;
        let bottom = (0..self.rows()).rfind(|&y| self.row_is_used(y))?;
        let row = |y: usize| &self.cells[y * self.columns + left..=y * self.columns + right];
        Some(Mask { columns: right - left + 1, cells: (top..=bottom).flat_map(row).copied().collect() })
    }

    /// The mask at 24x24, columns before rows, rounded to a byte in between. (Pillow 13 does rows first for some tall
    /// pictures, earlier versions never do.)
    fn reduced(&self) -> Grid {
        let rows = self.rows();
        let mut narrow = vec![0u8; rows * GRID];
        for (x, taps) in bilinear(self.columns).iter().enumerate() {
            for y in 0..rows {
                narrow[y * GRID + x] = taps.apply(|i| if self.cells[y * self.columns + i] { 255 } else { 0 });
            }
        }
        let mut grid = [0; GRID * GRID];
        for (y, taps) in bilinear(rows).iter().enumerate() {
            for x in 0..GRID {
                grid[y * GRID + x] = taps.apply(|i| narrow[i * GRID + x]);
            }
        }
        grid
    }
}

/// The weights of the input samples behind one output sample, in units of 2^-22.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Pillow computes with this many fractional bits (32 bits less 8 for the result and 2 to spare).
const FRACTION: u32 = 22;

impl Taps {
    fn apply(&self, sample: impl Fn(usize) -> u8) -> u8 {
        let weighted = self.weights.iter().enumerate().map(|(i, &w)| w * i32::from(sample(self.first + i)));
        let sum = (1 << (FRACTION - 1)) + weighted.sum::<i32>();
        (sum >> FRACTION).clamp(0, 255) as u8
    }
}

/// The taps that bring `length` samples to 24 as Pillow's BILINEAR does: a triangle over the sample's centre, as
/// wide as the reduction when shrinking, cut at the borders, normalized, then rounded to fixed point.
fn bilinear(length: usize) -> Vec<Taps> {
    let scale = length as f64 / GRID as f64;
    let support = scale.max(1.0);
    let taps = |position: usize| {
        let centre = (position as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(length);
        let triangle = |i: usize| (1.0 - ((i as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
        let total: f64 = (first..end).map(triangle).sum();
        let fixed = |i| (0.5 + triangle(i) / total * f64::from(1 << FRACTION)) as i32;
        Taps { first, weights: (first..end).map(fixed).collect() }
    };
    (0..GRID).map(taps).collect()
}

fn squared_distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// The name of the nearest color; the first of equals.
fn nearest(palette: &[(&'static str, [u8; 3])], color: [f64; 3]) -> &'static str {
    let mut best = ("", f64::INFINITY);
    for &(name, value) in palette {
        let distance = squared_distance(value.map(f64::from), color);
        if distance < best.1 {
            best = (name, distance);
        }
    }
    best.0
}

fn channel_medians(pixels: Vec<[f64; 3]>) -> [f64; 3] {
    [0, 1, 2].map(|channel| {
        let mut values: Vec<f64> = pixels.iter().map(|pixel| pixel[channel]).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
    })
}

/// The value at a share of the way from the smallest to the largest, linear between neighbours, with numpy's
/// rounding: from the nearer neighbour.
fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let position = (values.len() - 1) as f64 * share;
    let below = position.floor();
    let (index, part) = (below as usize, position - below);
    let (low, high) = (values[index], values[(index + 1).min(values.len() - 1)]);
    if part >= 0.5 { high - (high - low) * (1.0 - part) } else { low + (high - low) * part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_numpy() {
        let of = |values: &[f64]| channel_medians(values.iter().map(|&v| [v, -v, 1.0]).collect());
        assert_eq!(of(&[7.0, 1.0, 4.0]), [4.0, -4.0, 1.0]);
        assert_eq!(of(&[7.0, 1.0, 4.0, 5.0]), [4.5, -4.5, 1.0]);
        let values = vec![3.0, 1.0, 4.0, 1.5, 9.0, 2.6];
        assert_eq!(percentile(values.clone(), 0.8), 4.0);
        assert_eq!(percentile(values.clone(), 0.5), 2.8);
        assert_eq!(percentile(values, 1.0), 9.0);
        assert_eq!(percentile(vec![2.0, 10.0, 3.0], 0.8), 7.200000000000001);
    }

    #[test]
    fn damaged_templates_are_refused_by_name() {
        assert!(Judge::new("circle 8.8 3 2\n###\n").err().unwrap().contains("circle 8.8 3 2"));
        assert!(Judge::new("blob 8.8 1 1\n#\n").err().unwrap().contains("blob"));
        assert!(Judge::new("circle 8.8 4 3\n####\n####\n####\n").err().unwrap().contains("square"));
    }
}
