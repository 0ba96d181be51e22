import Foundation
import XCTest

@testable import Mmada

final class ContextTests: XCTestCase {
    func test_options_reach_the_context() throws {
        let model = try demoModel()
        let options = ContextOptions(threads: 3, instructionSet: "portable", compute: .exact)
        let info = try Context(model, options: options).info()
        XCTAssertEqual(info.threads, 3)
        XCTAssertEqual(info.instructionSet, "portable")
        XCTAssertEqual(info.compute, .exact)
        assertFails(.invalidArgument, saying: "abacus") {
            try Context(model, options: ContextOptions(instructionSet: "abacus"))
        }
        assertFails(.invalidArgument, saying: "threads is -2") {
            try Context(model, options: ContextOptions(threads: -2))
        }
        assertFails(.invalidArgument) { try Context(model, options: ContextOptions(threads: 100_000)) }
    }

    func test_a_memory_limit_is_an_error_and_not_the_end() async throws {
        let context = try Context(demoModel(), options: ContextOptions(memoryLimit: 1 << 16))
        await assertFailsLater(.outOfMemory) { try await context.ask("What is 17 + 25?") }
        XCTAssertLessThanOrEqual(try context.info().memoryUsed, 1 << 16)
    }

    func test_packed_weights_answer_the_same_and_count() async throws {
        let context = try Context(demoModel(), options: ContextOptions(pack: true))
        let info = try context.info()
        XCTAssertGreaterThan(info.packedBytes, 1 << 20)
        XCTAssertEqual(info.memoryUsed, info.packedBytes)
        let answer = try await context.ask("What is 17 + 25?")
        XCTAssertEqual(answer.answer, "42")
    }

    func test_a_device_that_is_not_there_is_said_to_be_missing() throws {
        let cpu = try XCTUnwrap(Library.devices().first)
        XCTAssertEqual(cpu.id, "cpu")
        XCTAssertNil(cpu.refusal)
        XCTAssertNil(cpu.computeCapability)
        XCTAssertNil(try Library.unavailable("cpu"))
        assertFails(.notFound) { try Library.unavailable("vulkan") }
        assertFails(.invalidArgument, saying: "cuda:N") {
            try Context(demoModel(), options: ContextOptions(device: "gpu"))
        }
        guard let reason = try Library.unavailable("cuda") else { throw XCTSkip("this machine has a card") }
        assertFails(.invalidArgument, saying: reason) {
            try Context(demoModel(), options: ContextOptions(device: "cuda:7"))
        }
        let context = try Context(
            demoModel(), options: ContextOptions(device: "auto", gpuLayers: 2),
            progress: { _, _ in XCTFail("told of progress") })
        XCTAssertEqual(try context.info().device, "cpu")
        XCTAssertEqual(try context.info().gpuLayers, 0)
    }

    func test_pictures_and_codes_become_each_other() throws {
        let context = try Context(demoModel())
        let side = try demoModel().info().imageSize / demoModel().info().imageDownsampling
        let codes = try context.encode(expectedPicture())
        XCTAssertEqual(codes.count, side * side)
        let image = try context.decode(codes, columns: side, rows: side)
        XCTAssertEqual(image.width, 64)
        let difference = try zip(image.pixels, expectedPicture().pixels).map { abs(Int($0) - Int($1)) }.reduce(0, +)
        XCTAssertLessThan(difference / image.pixels.count, 40)
        assertFails(.invalidArgument) { try context.decode(codes, columns: side, rows: side + 1) }
        assertFails(.invalidArgument) { try context.decode(codes, columns: -side, rows: -side) }
        assertFails(.invalidArgument) { try context.encode(noise(width: 9, height: 8, seed: 1)) }
    }

    func test_logits_and_scores_are_those_of_the_answer() async throws {
        let model = try demoModel()
        let info = try model.info()
        let context = try Context(model)
        let prompt = try model.promptIDs([.user("What is 17 + 25?")])
        let answer = try model.tokenize("42")
        let wrong = try model.tokenize("17")

        let masked = prompt + [TokenID](repeating: info.maskID, count: answer.count)
        let end = TokenID(info.textVocabulary)
        let rows = [prompt.count, prompt.count + 1]
        let logits = try await context.forward(masked + [info.eotID], rows: rows, vocabulary: 0..<end)
        XCTAssertEqual(logits.count, 2 * info.textVocabulary)
        let swapped = try context.forward(
            masked + [info.eotID], rows: rows.reversed(), vocabulary: 5..<end, canceller: nil)
        XCTAssertEqual(Array(swapped.prefix(Int(end) - 5)), Array(logits.suffix(Int(end) - 5)))

        let options = ScoreOptions(samples: 16, seed: 3)
        let good = try await context.score(prompt: prompt, answer: answer, options: options)
        let again = try context.score(prompt: prompt, answer: answer, options: options, canceller: nil)
        let bad = try await context.score(prompt: prompt, answer: wrong, options: options)
        XCTAssertEqual(good, again)
        XCTAssertEqual(good.samples, 16)
        XCTAssertLessThanOrEqual(good.logLikelihood, 0)
        XCTAssertGreaterThan(good.logLikelihood, bad.logLikelihood)

        assertFails(.invalidArgument) { try context.forward([], rows: [], vocabulary: 0..<1, canceller: nil) }
        assertFails(.invalidArgument) { try context.forward([1], rows: [-1], vocabulary: 0..<1, canceller: nil) }
        assertFails(.invalidArgument) { try context.forward([1], rows: [7], vocabulary: 0..<1, canceller: nil) }
        await assertFailsLater(.invalidArgument) { try await context.score(prompt: prompt, answer: []) }
    }

    func test_scores_can_be_cancelled() async throws {
        let model = try demoModel()
        let context = try Context(model)
        let prompt = try model.promptIDs([.user("What is 17 + 25?")])
        let answer = try model.tokenize("The answer is 42, as everybody knows.")
        let canceller = try Canceller()
        canceller.cancel()
        assertFails(.cancelled) { try context.score(prompt: prompt, answer: answer, canceller: canceller) }
        let task = Task {
            try await context.score(prompt: prompt, answer: answer, options: ScoreOptions(samples: 1_000_000))
        }
        try await Task.sleep(nanoseconds: 20_000_000)
        task.cancel()
        switch await task.result {
        case .success: XCTFail("scored")
        case .failure(let error): XCTAssert(error is CancellationError, "\(error)")
        }
    }
}
