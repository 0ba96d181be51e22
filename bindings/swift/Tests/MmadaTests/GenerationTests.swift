import Foundation
import XCTest

@testable import Mmada

final class GenerationTests: XCTestCase {
    func test_a_drawing_has_the_pixels_of_the_command_line() async throws {
        let context = try Context(demoModel())
        let images = try await context.draw(starAndRing, options: ImageOptions(seed: 2))
        XCTAssertEqual(images, [try expectedPicture()])
    }

    func test_a_sum_is_thought_out() async throws {
        let context = try Context(demoModel())
        let answer = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        XCTAssertEqual(answer.answer, "42")
        XCTAssertEqual("\(answer)", "42")
        XCTAssertFalse(try XCTUnwrap(answer.thinking).isEmpty)
        XCTAssertEqual(answer.text, "<think>\(answer.thinking ?? "")</think>42")
        XCTAssertEqual(answer.warnings, [])
        XCTAssertFalse(answer.ids.isEmpty)
    }

    func test_a_picture_is_looked_at() async throws {
        let context = try Context(demoModel())
        let answer = try await context.ask("What color is the background?", about: expectedPicture())
        XCTAssertEqual(answer.answer, "black")
        XCTAssertNil(answer.thinking)
    }

    func test_a_chat_has_turns() async throws {
        let model = try demoModel()
        let context = try Context(model)
        let turns = [Message.user("What is 17 + 25?"), .assistant("42"), .user("What is 30 + 12?")]
        let prompt = try model.promptIDs(turns)
        let seen = try model.detokenize(prompt)
        XCTAssert(turns.allSatisfy { seen.contains($0.content) }, seen)
        let generation = try context.beginText(promptIDs: prompt)
        try await generation.finish()
        let answer = try await context.answer(turns)
        XCTAssertEqual(answer.answer, try generation.answer())
        XCTAssertFalse(answer.answer.isEmpty)
    }

    func test_the_stream_has_every_step_and_every_position_once() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("What is 17 + 25?")], options: TextOptions(thinking: true))
        let total = try generation.info().totalSteps
        XCTAssert(try generation.canvas().contains(nil))
        var steps: [Step] = []
        var written = ""
        for try await step in generation.steps {
            steps.append(step)
            let text = try generation.text()
            XCTAssert(text.hasPrefix(written), "\(written) became \(text)")
            written = text
        }
        XCTAssertEqual(steps.map(\.index), Array(1...steps.count))
        XCTAssertLessThanOrEqual(steps.count, total)
        XCTAssertEqual(steps.map(\.isDone), steps.map { $0 == steps.last })
        XCTAssert(steps.allSatisfy { $0.stage == .text })
        let changes = steps.flatMap(\.changes)
        XCTAssertEqual(Set(changes.map(\.position)).count, changes.count)
        let canvas = try generation.canvas()
        XCTAssert(changes.allSatisfy { canvas[$0.position] == $0.id })
        XCTAssertEqual(try generation.answer(), "42")
        XCTAssert(try generation.info().isDone)
    }

    func test_leaving_the_loop_leaves_the_generation_as_it_is() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("What is 17 + 25?")], options: TextOptions(thinking: true))
        for try await step in generation.steps where step.index == 3 { break }
        XCTAssertFalse(try generation.info().isDone)
        var indices: [Int] = []
        for try await step in generation.steps { indices.append(step.index) }
        XCTAssertEqual(indices.first, 4)
        XCTAssertEqual(try generation.answer(), "42")
        for try await step in generation.steps { XCTFail("a step after the last one: \(step)") }
    }

    func test_steps_can_be_taken_one_by_one_without_tasks() throws {
        let context = try Context(demoModel(), options: ContextOptions(threads: 1))
        let generation = try context.beginImage(starAndRing, options: ImageOptions(seed: 2))
        assertFails(.invalidArgument) { try generation.image() }
        while try !generation.step().isDone {
            XCTAssertEqual(try generation.image().width, 64)
        }
        XCTAssertEqual(try generation.image(), try expectedPicture())
        assertFails(.done) { try generation.step() }
        assertFails(.invalidArgument) { try generation.image(1) }
        assertFails(.invalidArgument, saying: "is -1") { try generation.image(-1) }
        assertFails(.notFound) { try generation.canvas(ofImage: 1) }
        assertFails(.invalidArgument) { try generation.text() }
        XCTAssertNil(try generation.imageDescription())
        let offset = TokenID(try demoModel().info().imageOffset)
        XCTAssertEqual(try generation.codes().map { $0 + offset }, try generation.canvas(ofImage: 0))
    }

    func test_several_pictures_are_drawn_together() async throws {
        let context = try Context(demoModel())
        let images = try await context.draw(starAndRing, options: ImageOptions(seed: 1, count: 2))
        XCTAssertEqual(images.count, 2)
        XCTAssertEqual(images[1], try expectedPicture())
        XCTAssertNotEqual(images[0], images[1])
    }

    func test_a_drawing_can_be_thought_out() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginImage(
            "a circle and a star", options: ImageOptions(thinking: true), description: TextOptions(seed: 7))
        var stages: [Stage] = []
        for try await step in generation.steps where stages.last != step.stage { stages.append(step.stage) }
        XCTAssertEqual(stages, [.text, .image])
        let description = try XCTUnwrap(generation.imageDescription())
        XCTAssert(description.contains("circle") && description.contains("star"), description)
    }

    func test_a_seed_gives_the_same_and_another_one_something_else() async throws {
        let context = try Context(demoModel())
        let other = try Context(demoModel(), options: ContextOptions(threads: 3))
        let options = ImageOptions(seed: 11, steps: 4, guidance: 1, schedule: .power(2), confidence: .margin)
        let first = try await context.draw("a red circle", options: options)
        let second = try await other.draw("a red circle", options: options)
        XCTAssertEqual(first, second)
        var another = options
        another.seed = 12
        let third = try await context.draw("a red circle", options: another)
        XCTAssertNotEqual(first, third)
    }

    func test_options_shape_the_answer() async throws {
        let model = try demoModel()
        let context = try Context(model)
        let whole = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        let stopped = try await context.ask(
            "What is 17 + 25?", options: TextOptions(thinking: true, stop: ["no such text", "</think>"]))
        XCTAssertEqual(stopped.text, whole.text.components(separatedBy: "</think>")[0])

        let forbidden = try XCTUnwrap(model.tokenize("42").first)
        let without = try await context.ask("What is 17 + 25?", options: TextOptions(forbid: [forbidden]))
        XCTAssertFalse(without.ids.contains(forbidden))
        let only = try await context.ask("What is 17 + 25?", options: TextOptions(allowOnly: [forbidden]))
        XCTAssertEqual(Set(only.ids), [forbidden])

        let generation = try context.beginText(
            [.user("What is 17 + 25?")], options: TextOptions(pinned: [2: forbidden, 0: forbidden]))
        XCTAssertEqual(try generation.canvas()[0], forbidden)
        XCTAssertNil(try generation.canvas()[1])
        XCTAssertEqual(try generation.canvas()[2], forbidden)
    }

    func test_prompts_of_ids_do_what_their_texts_do() async throws {
        let model = try demoModel()
        let context = try Context(model)
        let generation = try context.beginText(promptIDs: model.promptIDs([.user("What is 17 + 25?")]))
        try await generation.finish()
        let asked = try await context.ask("What is 17 + 25?")
        XCTAssertEqual(try generation.answer(), asked.answer)
        assertFails(.invalidArgument) { try context.beginText(promptIDs: [.max - 1]) }
        assertFails(.invalidArgument) {
            try context.beginText(promptIDs: [1], options: TextOptions(thinking: true))
        }
        let drawing = try context.beginImage(
            promptIDs: [1, 2, 3], unconditionalIDs: [1], options: ImageOptions(steps: 2))
        try drawing.run()
        XCTAssertEqual(try drawing.image().height, 64)
    }

    func test_options_that_cannot_be_are_errors() throws {
        let context = try Context(demoModel())
        let question = [Message.user("What?")]
        for (options, words) in [
            (TextOptions(steps: -1), "steps is -1"), (TextOptions(genLength: .min), "genLength is -"),
            (TextOptions(steps: 0), ""), (TextOptions(genLength: 33, blockLength: 32), ""),
            (TextOptions(temperature: .nan), ""), (TextOptions(temperature: -1), ""), (TextOptions(stop: [""]), ""),
            (TextOptions(allowOnly: []), ""), (TextOptions(forbid: [.max]), ""),
            (TextOptions(pinned: [-3: 1]), "is -3"),
            (TextOptions(pinned: [1_000_000: 1]), ""),
        ] {
            assertFails(.invalidArgument, saying: words) { try context.beginText(question, options: options) }
        }
        for options in [
            ImageOptions(count: 0), ImageOptions(count: -1), ImageOptions(width: 63), ImageOptions(steps: 0),
            ImageOptions(guidance: .infinity), ImageOptions(schedule: .power(0)),
        ] {
            assertFails(.invalidArgument) { try context.beginImage("a star", options: options) }
        }
        assertFails(.invalidArgument) {
            try context.beginImage("a star", options: ImageOptions(), description: TextOptions())
        }
        assertFails(.invalidArgument) { try context.beginText([]) }
        let image = try noise(width: 8, height: 8, seed: 1)
        assertFails(.unsupported) {
            try context.beginText([.user("What?", image: image), .user("And this?", image: image)])
        }
        assertFails(.contextOverflow) {
            try context.beginText([.user(String(repeating: "a red circle ", count: 10_000))])
        }
    }
}
