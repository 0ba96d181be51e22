"""What the model says and draws, and everything that can be asked of it."""

import io
import json
import math
import os
import pathlib

import mmada
import numpy as np
import PIL.Image
import pytest
from conftest import PROMPT, SEED


def test_a_question_is_answered_with_thinking(context):
    answer = context.ask("What is 17 + 25?", thinking=True)
    assert str(answer) == answer.answer == "42"
    assert answer.thinking
    assert answer.text == f"<think>{answer.thinking}</think>{answer.answer}"
    assert context.model.detokenize(answer.ids, skip_special=True) == answer.text
    assert answer.warnings == []


def test_a_picture_has_the_pixels_that_the_program_draws(context, picture_path, tmp_path):
    steps = []
    drawing = context.draw(PROMPT, seed=SEED, progress=steps.append)
    assert drawing.image == mmada.Image(picture_path)
    assert len(drawing.images) == 1 and drawing.description is None
    assert [step.index for step in steps] == list(range(1, steps[0].total + 1))
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    assert {step.stage for step in steps} == {"image"}
    assert sorted(p for step in steps for p in step.changes["position"]) == list(range(64))
    drawing.image.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == pathlib.Path(picture_path).read_bytes() == drawing.image.encode()


def test_several_pictures_are_those_of_the_next_seeds(context):
    three = context.draw(PROMPT, seed=SEED - 1, count=3).images
    assert len(three) == 3
    assert three[1] == context.draw(PROMPT, seed=SEED).image != three[0]


def test_thinking_before_a_picture_gives_its_description(context):
    drawing = context.draw("a star", thinking=True, seed=5)
    assert drawing.description
    assert drawing.image.size == (64, 64)
    described = context.draw("a star", thinking=True, seed=5, description=mmada.TextOptions(temperature=0.0))
    assert described.description
    with pytest.raises(mmada.ArgumentError):
        context.draw("a star", description=mmada.TextOptions())


def test_a_picture_is_taken_in_every_form(context, picture_path):
    question = "What color is the background?"
    image = mmada.Image(picture_path)
    data = pathlib.Path(picture_path).read_bytes()
    with PIL.Image.open(picture_path) as pil:
        pil.load()
        forms = [
            picture_path, pathlib.Path(picture_path), data, bytearray(data), memoryview(data), pil, pil.convert("RGBA"),
            image, image.numpy(), np.asarray(image)[:, ::-1][:, ::-1],
        ]
    for form in forms:
        assert mmada.Image(form) == image
        assert str(context.ask(question, image=form)) == "black"
    message = mmada.Message("user", question, image)
    assert str(context.ask([message])) == "black"
    assert str(context.ask({"role": "user", "content": question, "image": image})) == "black"


def test_pictures_go_out_in_every_form(picture_path, tmp_path):
    image = mmada.Image(picture_path)
    with PIL.Image.open(picture_path) as pil:
        expected = np.asarray(pil.convert("RGB"))
    assert (image.numpy() == expected).all() and image.numpy().dtype == np.uint8
    assert (np.asarray(image.pil()) == expected).all()
    assert image.size == image.pil().size == (64, 64)
    assert np.asarray(image, np.float32).dtype == np.float32
    assert not image.numpy().flags.writeable
    copy = np.array(image)
    copy[:] = 7
    assert mmada.Image(copy) != image and mmada.Image(copy).numpy().max() == 7
    wide = np.arange(5 * 9 * 3, dtype=np.uint8).reshape(5, 9, 3)
    assert (mmada.Image(mmada.Image(wide).encode()).numpy() == wide).all()
    assert len({image, mmada.Image(picture_path), mmada.Image(wide)}) == 2
    with PIL.Image.open(io.BytesIO(image.encode("jpeg"))) as jpeg:
        assert jpeg.format == "JPEG" and np.abs(np.asarray(jpeg).astype(int) - expected).mean() < 8
    assert image._repr_png_() == image.encode("png")


def test_a_chat_remembers_what_was_said(context):
    chat = [
        {"role": "user", "content": "What is 17 + 25?"},
        mmada.Message("assistant", "42"),
        {"role": "user", "content": "What is 30 + 12?"},
    ]
    ids = context.model.prompt_ids(chat)
    assert ids.dtype == np.uint32
    text = context.model.detokenize(ids)
    assert text.index("17 + 25") < text.index("42") < text.index("30 + 12")
    with context.begin_text_ids(ids) as generation:
        assert generation.run().text == context.ask(chat).text != ""
    with context.begin_text_ids(context.model.prompt_ids(chat[-1:])) as generation:
        assert generation.run().answer == "42"


def test_steps_show_an_answer_coming_about(context):
    with context.begin_text("What is 17 + 25?", thinking=True) as generation:
        assert not generation.done and generation.has_text and generation.image_count == 0
        assert (generation.canvas == mmada.MASKED).all()
        known = {}
        for step in generation:
            assert step.stage == "text" and 0 < step.fraction <= 1 and step.changes["sequence"].max(initial=0) == 0
            known.update(zip(step.changes["position"].tolist(), step.changes["id"].tolist()))
            canvas = generation.canvas
            assert all(canvas[position] == token for position, token in known.items())
            assert (canvas[: step.prefix] != mmada.MASKED).all()
            assert "42".startswith(generation.answer) or not step.done
        assert generation.done and generation.answer == "42"
        assert list(generation) == []
        with pytest.raises(mmada.DoneError):
            generation.step()
        assert 0 < step.index <= generation.total_steps
        assert "done" in repr(generation)


def test_a_drawing_can_be_seen_midway(context):
    with context.begin_image(PROMPT, seed=SEED) as generation:
        with pytest.raises(mmada.ArgumentError):
            generation.image()
        for _ in range(6):
            step = next(generation)
        assert step.index == 6
        canvas, codes = generation.image_canvas(), generation.codes()
        assert canvas.shape == codes.shape == (8, 8)
        decided = canvas != mmada.MASKED
        assert 0 < decided.sum() < 64
        assert (canvas[decided] - context.model.info.image_offset == codes[decided]).all()
        preview = generation.image()
        assert preview.size == (64, 64)
        final = generation.run().image()
        assert final != preview
        assert context.decode_image(generation.codes()) == final
        with pytest.raises(IndexError):
            generation.image(1)
        with pytest.raises(IndexError):
            generation.codes(-1)
        with pytest.raises(mmada.ArgumentError):
            generation.text


def test_generations_of_one_context_take_turns(context, picture_path):
    with context.begin_text("What is 17 + 25?") as text, context.begin_image(PROMPT, seed=SEED) as picture:
        running = [text, picture]
        while running:
            running = [generation for generation in running if next(generation, None)]
        assert text.answer == "42"
        assert picture.image() == mmada.Image(picture_path)


def test_options_are_changed_one_by_one_or_together(context):
    defaults = context.model.text_options()
    assert defaults.gen_length and defaults.remasking == "low_confidence"
    whole = context.ask("What is 17 + 25?", options=defaults)
    assert str(whole) == "42"
    assert str(context.ask("What is 17 + 25?", stop="2")) == "4"
    assert str(context.ask("What is 17 + 25?", options=defaults, stop=["x", "42"])) == ""
    two = context.model.tokenize("2")
    assert two.size == 1
    assert "2" not in str(context.ask("What is 17 + 25?", forbid=two))
    only = context.ask("What is 17 + 25?", allow_only=two.tolist(), gen_length=4, block_length=4, steps=4)
    assert str(only) == "2222"
    pinned = context.ask("What is 17 + 25?", pinned={1: int(two[0]), 0: int(two[0])})
    assert str(pinned).startswith("22")
    assert context.model.image_options().width == 64
    assert context.model.image_options(thinking=True).thinking
    assert context.model.text_options(thinking=True).thinking
    assert isinstance(context.model.description_options().steps, int)
    linear = context.draw(PROMPT, seed=SEED, schedule="linear", confidence="margin", guidance=0.0, steps=4)
    assert linear.image != context.draw(PROMPT, seed=SEED).image
    with context.begin_image("a star", width=64, height=64, steps=3) as generation:
        assert generation.total_steps == 3


def test_a_prompt_of_ids_is_drawn_as_the_context_would(context):
    info = context.model.info
    prompt = np.array([info.bos_id, *context.model.tokenize("a star")])
    with context.begin_image_ids(prompt, [info.bos_id], steps=2) as generation:
        assert generation.run().image().size == (64, 64)
    with pytest.raises(mmada.ArgumentError):
        context.begin_image_ids(prompt, [info.bos_id], thinking=True)


def test_tokens_are_texts_and_back(model):
    text = "What is 17 + 25?"
    ids = model.tokenize(text)
    assert ids.dtype == np.uint32 and model.detokenize(ids) == text == model.detokenize(ids.tolist())
    assert model.tokenize("").size == 0 and model.detokenize([]) == ""
    assert (ids < model.info.text_vocabulary).all()
    eos = model.detokenize([model.info.eos_id])
    assert eos and model.detokenize([model.info.eos_id], skip_special=True) == ""
    assert model.tokenize(eos, parse_special=True).tolist() == [model.info.eos_id]
    assert model.info.eos_id not in model.tokenize(eos)


def test_logits_are_an_array(context):
    info = context.model.info
    ids = [*context.model.prompt_ids("What is 17 + 25?"), *[info.mask_id] * 8]
    every = context.forward(ids)
    assert every.shape == (len(ids), info.vocabulary) and every.dtype == np.float32
    assert np.isfinite(every).all() and every.std() > 0.1
    some = context.forward(np.array(ids, np.int64), rows=[len(ids) - 8, 3], vocab=(10, info.text_vocabulary))
    np.testing.assert_allclose(some, every[[len(ids) - 8, 3], 10 : info.text_vocabulary], atol=2e-2, rtol=1e-2)
    first = context.forward(ids, rows=[len(ids) - 8])[0]
    assert context.model.detokenize([int(first.argmax())]) in ("4", "42")
    assert context.forward(ids, rows=[]).shape == (0, info.vocabulary)


def test_the_likely_answer_scores_higher(context):
    question = "What is 17 + 25?"
    right = context.score(question, "42", samples=16, seed=3)
    wrong = context.score(context.model.prompt_ids(question), context.model.tokenize("97"), samples=16, seed=3)
    assert wrong.log_likelihood < right.log_likelihood <= 0 and right.samples == 16
    assert math.isclose(right.per_token, right.log_likelihood / context.model.tokenize("42").size)
    assert context.score([mmada.Message("user", question)], "42", samples=16, seed=3) == right
    assert context.score(context.model.prompt_ids(question).tolist(), "42", samples=16, seed=3) == right
    assert context.score(question, "42", samples=1, cfg_scale=1.0).samples == 1


def test_pictures_are_codes_and_back(context, picture_path):
    codes = context.encode_image(picture_path)
    assert codes.shape == (8, 8) and codes.dtype == np.uint32 and (codes < context.model.info.image_codes).all()
    wide = context.decode_image(codes[:3].tolist())
    assert wide.size == (64, 24)
    image = context.decode_image(codes)
    assert np.abs(image.numpy().astype(int) - mmada.Image(picture_path).numpy()).mean() < 40


def test_metadata_is_a_mapping(model):
    metadata = model.metadata
    assert metadata["general.architecture"].startswith("mmada")
    assert len(metadata) == len(list(metadata)) > 10
    assert "general.architecture" in metadata and "no.such.key" not in metadata and metadata.get("nothing") is None
    assert metadata.get(7) is None
    assert isinstance(json.loads(metadata["tokenizer.ggml.tokens"]), list)


def test_what_a_request_takes_is_known_before(context):
    model = context.model
    text = model.estimate_text(100, gen_length=24, block_length=24, steps=12)
    assert text.weight_bytes > 0 and text.scratch_bytes > 0
    assert model.estimate_text(100, gen_length=24, block_length=24, steps=24).multiply_adds > text.multiply_adds
    assert model.estimate_image(20, count=2).tokens > model.estimate_image(20).tokens
    assert context.estimate_seconds(text) > 0


def test_what_runs_is_known(model):
    assert mmada.__version__ == mmada.version() and mmada.version() in mmada.build_info()
    device = mmada.devices()[0]
    assert device.backend == "cpu" and "portable" in device.instruction_sets
    assert (device.id, device.compute_capability, device.refusal) == ("cpu", None, None)
    with model.context(threads=1, instruction_set="portable", compute="exact", memory_limit=2**30) as context:
        info = context.info
        assert (info.threads, info.instruction_set, info.compute) == (1, "portable", "exact")
        assert str(context.ask("What is 17 + 25?")) == "42"
        assert context.info.memory_used > info.memory_used
    with model.context(pack=True, memory_limit=2**30) as context:
        info = context.info
        assert info.packed_bytes > 2**20 and info.memory_used == info.packed_bytes
        assert str(context.ask("What is 17 + 25?")) == "42"
    assert model.info.file_bytes == os.path.getsize(os.environ["MMADA_MODEL"])
    assert repr(os.environ["MMADA_MODEL"]) in repr(model)
