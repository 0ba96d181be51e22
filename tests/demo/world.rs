//! The world of the demo model: drawings of one to three shapes, the sentences that describe them, and the loose
//! requests that leave something open.

use image::{GenericImageView, RgbImage};
use serde::Deserialize;

/// Side of the pictures, in pixels.
pub const SIDE: usize = 64;

/// Names and RGB values of what shapes are painted with.
pub const COLORS: [(&str, [u8; 3]); 8] = [
    ("red", [220, 40, 40]),
    ("green", [40, 170, 70]),
    ("blue", [50, 90, 220]),
    ("yellow", [245, 205, 50]),
    ("purple", [150, 60, 190]),
    ("orange", [245, 135, 35]),
    ("cyan", [60, 200, 215]),
    ("pink", [240, 130, 180]),
];
pub const SHAPES: [&str; 7] = ["circle", "square", "triangle", "star", "ring", "cross", "diamond"];
pub const BACKGROUNDS: [(&str, [u8; 3]); 3] =
    [("black", [15, 15, 20]), ("white", [245, 245, 240]), ("gray", [128, 128, 132])];

/// A color and a shape, by name.
pub type Object = (String, String);

/// What a picture shows.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Scene {
    /// Where the objects stand: `one`, `left of`, `above` or `row`.
    pub layout: String,
    /// In reading order: left to right, top to bottom.
    pub objects: Vec<Object>,
    /// `small` or `large`, of a single object only.
    pub size: Option<String>,
    pub background: String,
}

impl Scene {
    /// The scene that a full caption describes, with or without white space around it and a full stop behind it;
    /// None when the text is anything else.
    pub fn parse(caption: &str) -> Option<Scene> {
        let blank = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
        let text = caption.trim_matches(blank).trim_end_matches('.');
        one(text).or_else(|| two(text)).or_else(|| three(text))
    }

    /// Whether the scene holds what a loose request (`a red star and a ring on a black background`) asks for: as
    /// many objects in the same order, and each color and the background where the request names them.
    pub fn fits(&self, request: &str) -> bool {
        let (body, background) = split_background(request);
        let wanted = mentions(body);
        let same = |(color, shape): &(Option<&str>, &str), object: &Object| {
            color.is_none_or(|c| c == object.0) && *shape == object.1
        };
        wanted.len() == self.objects.len()
            && wanted.iter().zip(&self.objects).all(|(want, object)| same(want, object))
            && background.is_none_or(|b| b == self.background)
    }
}

/// A picture of a sheet: 64x64, ten in a row.
pub fn tile(sheet: &RgbImage, index: usize) -> Option<RgbImage> {
    let (x, y, side) = ((index % 10 * SIDE) as u32, (index / 10 * SIDE) as u32, SIDE as u32);
    let inside = x + side <= sheet.width() && y + side <= sheet.height();
    inside.then(|| sheet.view(x, y, side, side).to_image())
}

/// `a small red star on a black background`
fn one(text: &str) -> Option<Scene> {
    let mut rest = Reader(text);
    rest.literal("a ")?;
    let size = rest.word(["small", "large"])?;
    rest.literal(" ")?;
    let object = rest.color_and_shape()?;
    let background = rest.background_to_the_end()?;
    Some(Scene { layout: "one".into(), objects: vec![object], size: Some(size.into()), background })
}

/// `a red star above an orange ring on a black background`
fn two(text: &str) -> Option<Scene> {
    let mut rest = Reader(text);
    let first = rest.object()?;
    rest.literal(" ")?;
    let layout = rest.word(["left of", "above"])?;
    rest.literal(" ")?;
    let second = rest.object()?;
    let background = rest.background_to_the_end()?;
    Some(Scene { layout: layout.into(), objects: vec![first, second], size: None, background })
}

/// `a red star, an orange ring and a blue cross in a row on a black background`
fn three(text: &str) -> Option<Scene> {
    let mut rest = Reader(text);
    let first = rest.object()?;
    rest.literal(", ")?;
    let second = rest.object()?;
    rest.literal(" and ")?;
    let third = rest.object()?;
    rest.literal(" in a row")?;
    let background = rest.background_to_the_end()?;
    Some(Scene { layout: "row".into(), objects: vec![first, second, third], size: None, background })
}

/// The rest of a sentence; each method takes what it names off its front, or leaves it as it was.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn literal(&mut self, text: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// One of `words`, none of which starts another.
    fn word<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
        let word = words.into_iter().find(|word| self.0.starts_with(word))?;
        self.0 = &self.0[word.len()..];
        Some(word)
    }

    fn article(&mut self) -> Option<()> {
        self.literal("an ").or_else(|| self.literal("a "))
    }

    fn color(&mut self) -> Option<&'static str> {
        self.word(COLORS.map(|(name, _)| name))
    }

    fn color_and_shape(&mut self) -> Option<Object> {
        let color = self.color()?;
        self.literal(" ")?;
        Some((color.into(), self.word(SHAPES)?.into()))
    }

    fn object(&mut self) -> Option<Object> {
        self.article()?;
        self.color_and_shape()
    }

    fn background_to_the_end(&mut self) -> Option<String> {
        self.literal(" on a ")?;
        let background = self.word(BACKGROUNDS.map(|(name, _)| name))?;
        (self.0 == " background").then(|| background.into())
    }
}

/// A request and the background that it ends with, if it names one.
fn split_background(request: &str) -> (&str, Option<&'static str>) {
    for (name, _) in BACKGROUNDS {
        if let Some(body) = request.strip_suffix(&format!(" on a {name} background")) {
            return (body, Some(name));
        }
    }
    (request, None)
}

/// Every `a shape` and `a color shape` in the text, from left to right.
fn mentions(text: &str) -> Vec<(Option<&'static str>, &'static str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut reader = Reader(rest);
        if let Some(mention) = mention(&mut reader) {
            found.push(mention);
            rest = reader.0;
        } else {
            let mut characters = rest.chars();
            characters.next();
            rest = characters.as_str();
        }
    }
    found
}

fn mention(reader: &mut Reader<'_>) -> Option<(Option<&'static str>, &'static str)> {
    reader.article()?;
    let color = reader.color();
    if color.is_some() {
        reader.literal(" ")?;
    }
    Some((color, reader.word(SHAPES)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(color: &str, shape: &str) -> Object {
        (color.into(), shape.into())
    }

    #[test]
    fn full_captions_of_one_two_and_three_objects_parse() {
        let scene = Scene::parse(" a large red ring on a white background.\n").unwrap();
        assert_eq!((scene.layout.as_str(), scene.size.as_deref()), ("one", Some("large")));
        assert_eq!((scene.objects, scene.background.as_str()), (vec![object("red", "ring")], "white"));
        let scene = Scene::parse("an orange star left of a cyan triangle on a gray background").unwrap();
        assert_eq!((scene.layout.as_str(), scene.size), ("left of", None));
        assert_eq!(scene.objects, [object("orange", "star"), object("cyan", "triangle")]);
        let scene = Scene::parse("a red star, a green circle and a green ring in a row on a black background").unwrap();
        assert_eq!((scene.layout.as_str(), scene.background.as_str()), ("row", "black"));
        assert_eq!(scene.objects, [object("red", "star"), object("green", "circle"), object("green", "ring")]);
    }

    #[test]
    fn anything_else_does_not_parse() {
        for text in [
            "",
            "a red star",
            "a red star on a black background",
            "a small red star on a black background now",
            "a small red star on a pink background",
            "a small star on a black background",
            "a small red star above a blue ring on a black background",
            "a red star beside a blue ring on a black background",
            "a red star, a blue ring and a cyan cross on a black background",
            "<think>a small red star on a black background</think>",
        ] {
            assert_eq!(Scene::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_is_met_by_every_scene_that_it_leaves_open_and_by_no_other() {
        let scene = Scene::parse("a red star above an orange ring on a black background").unwrap();
        for request in [
            "a star and a ring",
            "a red star and a ring",
            "a red star and an orange ring on a black background",
            "a star and an orange ring on a black background",
        ] {
            assert!(scene.fits(request), "{request}");
        }
        for request in [
            "a star",
            "a ring and a star",
            "a star, a ring and a cross",
            "a blue star and a ring",
            "a star and a ring on a white background",
        ] {
            assert!(!scene.fits(request), "{request}");
        }
    }
}
