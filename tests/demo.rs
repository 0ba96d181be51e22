//! The demo model, converted as users convert, is as good as the published implementation says it is.

use std::path::PathBuf;

use image::RgbImage;
use serde::Deserialize;

use evaluation::judge::{Judge, Verdict};
use evaluation::score::{self, Tasks};
use evaluation::world::{self, Object, Scene};

#[path = "demo/mod.rs"]
mod evaluation;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// What the reference judge found in a picture.
#[derive(Deserialize)]
struct JudgeCase {
    tile: usize,
    source: String,
    layout: String,
    background: String,
    objects: Vec<(Option<String>, Option<String>)>,
    asked: Asked,
    all_right: bool,
    /// Rounded to four digits.
    share: f64,
}

#[derive(Deserialize)]
struct Asked {
    objects: Vec<Object>,
    background: String,
}

#[test]
fn the_judge_finds_in_every_picture_what_the_reference_judge_found() {
    let judge = Judge::new(&std::fs::read_to_string(golden("judge_templates.txt")).unwrap()).unwrap();
    let sheet = image::open(golden("eval/judge_images.png")).unwrap().to_rgb8();
    let cases = std::fs::read_to_string(golden("eval/judge_cases.json")).unwrap();
    let cases: Vec<JudgeCase> = serde_json::from_str(&cases).unwrap();
    assert!(cases.len() >= 80 && cases.iter().any(|case| !case.all_right), "the cases are not those meant here");
    for case in cases {
        let name = format!("tile {} ({})", case.tile, case.source);
        let picture: RgbImage = world::tile(&sheet, case.tile).unwrap();
        let (background, findings) = judge.look(&picture, &case.layout);
        assert_eq!(background, case.background, "{name}: background");
        assert_eq!(findings.len(), case.objects.len(), "{name}: objects");
        for (finding, (color, shape)) in findings.iter().zip(&case.objects) {
            assert_eq!((finding.map(|f| f.0), finding.map(|f| f.1)), (color.as_deref(), shape.as_deref()), "{name}");
        }
        let Asked { objects, background } = case.asked;
        let scene = Scene { layout: case.layout, objects, size: None, background };
        let Verdict { all_right, share } = judge.score(&picture, &scene);
        assert_eq!(all_right, case.all_right, "{name}: all right");
        assert!((share - case.share).abs() <= 5e-5, "{name}: share {share}, the reference judge says {}", case.share);
    }
}

#[test]
fn every_task_of_the_evaluation_is_there_and_makes_sense() {
    let tasks = Tasks::load(&golden("")).unwrap();
    assert_eq!([tasks.draw.len(), tasks.see.len(), tasks.text.len(), tasks.reason.len()], [200; 4]);
    for task in &tasks.draw {
        assert_eq!(Scene::parse(&task.prompt).as_ref(), Some(&task.scene), "{}", task.prompt);
    }
    // Each request was made loosely from the scene of the drawing task in its place or another; some scene fits it.
    for task in &tasks.reason {
        let fits = |draw: &&score::DrawTask| draw.scene.fits(&task.request);
        assert!(!task.request.is_empty() && !tasks.draw.iter().all(|draw| fits(&draw)), "{}", task.request);
    }
}
