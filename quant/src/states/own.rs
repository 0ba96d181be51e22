//! What the model is asked where no data is given: enough of everything that it can do.

use mmada::Model;

use super::{Picture, Sample, Task};

const CHATS: [&str; 8] = [
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "What is the difference between weather and climate?",
    "Translate into French: The train leaves at half past seven, and we are late.",
    "Write a Python function that returns the prime numbers below n.",
    "List five things to check before a long bicycle tour.",
    "Explain to a child why the sky is blue.",
    "What color comes after red in a rainbow?",
    "Summarize: Bees dance to tell each other where flowers are. The angle of the dance gives the direction, its \
     length the distance.",
];

const PROBLEMS: [&str; 6] = [
    "What is 17 + 25?",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost?",
    "Tom is older than Ann, and Ann is older than Max. Who is the youngest?",
    "Which number comes next: 2, 6, 12, 20, 30?",
    "If it takes 5 machines 5 minutes to make 5 parts, how long do 100 machines need for 100 parts?",
    "What is 63 - 48?",
];

const PICTURES: [&str; 8] = [
    "a red circle left of a blue square on a white background",
    "a small wooden house by a lake at sunset",
    "a green triangle above a yellow star on a black background",
    "a photo of a cat sleeping on a pile of books",
    "a bowl of oranges, oil painting",
    "an orange ring, a purple diamond and a cyan cross in a row on a gray background",
    "a crowded street in the rain at night, neon signs",
    "a portrait of an old man with a white beard",
];

const QUESTIONS: [&str; 4] = [
    "Describe the image.",
    "What is in the middle of the image?",
    "How many objects are there?",
    "What colors are there?",
];

/// The built-in samples: for a model that sees pictures those too, which it draws itself.
pub fn own_samples(model: &Model) -> Vec<Sample> {
    let sample = |task: Task, prompt: &str, picture: Option<&str>| Sample {
        task,
        prompt: prompt.to_owned(),
        answer: None,
        picture: picture.map(|text| Picture::Drawn(text.to_owned())),
        origin: "the built-in samples".to_owned(),
    };
    let mut samples: Vec<Sample> = CHATS.iter().map(|text| sample(Task::Chat, text, None)).collect();
    samples.extend(PROBLEMS.iter().map(|text| sample(Task::Think, text, None)));
    if model.has_images() {
        samples.extend(PICTURES.iter().map(|text| sample(Task::Draw, text, None)));
        for (n, question) in QUESTIONS.iter().enumerate() {
            samples.push(sample(Task::Question, question, Some(PICTURES[n])));
            samples.push(sample(Task::ThinkQuestion, question, Some(PICTURES[PICTURES.len() - 1 - n])));
        }
    }
    samples
}
