import Foundation
import XCTest

@testable import Mmada

/// A request that takes thousands of steps: long enough to be cancelled in the middle.
let endless = TextOptions(genLength: 512, steps: 512, blockLength: 512, temperature: 1)

final class LifetimeTests: XCTestCase {
    func test_closed_contexts_and_generations_are_errors() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("What is 17 + 25?")], options: TextOptions(thinking: true))
        context.close()
        context.close()
        assertFails(.invalidHandle, saying: "the context is used after close()") { try context.info() }
        assertFails(.invalidHandle) { try context.beginText([.user("a")]) }
        assertFails(.invalidHandle) { try context.beginImage("a") }
        assertFails(.invalidHandle) { try context.encode(try expectedPicture()) }
        assertFails(.invalidHandle) { try context.forward([1], rows: [0], vocabulary: 0..<1, canceller: nil) }
        await assertFailsLater(.invalidHandle) { try await context.ask("a") }
        await assertFailsLater(.invalidHandle) { try await context.draw("a") }
        await assertFailsLater(.invalidHandle) { try await context.score(prompt: [1], answer: [2]) }

        // Its generations go on.
        try await generation.finish()
        XCTAssertEqual(try generation.answer(), "42")
        generation.close()
        generation.close()
        generation.cancel()
        assertFails(.invalidHandle, saying: "the generation is used after close()") { try generation.step() }
        assertFails(.invalidHandle) { try generation.run() }
        assertFails(.invalidHandle) { try generation.text() }
        assertFails(.invalidHandle) { try generation.canvas() }
        assertFails(.invalidHandle) { try generation.image() }
        await assertFailsLater(.invalidHandle) { try await generation.nextStep() }
        await assertFailsLater(.invalidHandle) { for try await _ in generation.steps {} }
        await assertFailsLater(.invalidHandle) { try await generation.result() }

        let canceller = try Canceller()
        canceller.close()
        canceller.cancel()
    }

    func test_closing_during_a_step_ends_the_step() throws {
        for _ in 0..<20 {
            let context = try Context(demoModel())
            let generation = try context.beginText([.user("Tell me all.")], options: endless)
            let ended = expectation(description: "the steps end")
            let started = DispatchSemaphore(value: 0)
            Thread.detachNewThread {
                started.signal()
                do {
                    try generation.run()
                    XCTFail("ran to its end")
                } catch let error as MmadaError {
                    XCTAssert([.cancelled, .invalidHandle].contains(error.status), error.message)
                } catch {
                    XCTFail("\(error)")
                }
                ended.fulfill()
            }
            started.wait()
            usleep(UInt32.random(in: 0..<20_000))
            context.close()
            generation.close()
            wait(for: [ended], timeout: 60)
        }
    }

    func test_threads_end_with_the_context_and_without_close() throws {
        let model = try demoModel()
        let before = try threadCount()
        for round in 0..<10 {
            let context = try Context(model, options: ContextOptions(threads: 4))
            let generation = try context.beginText([.user("a")])
            try generation.step()
            XCTAssertGreaterThan(try threadCount(), before)
            if round % 2 == 0 {
                generation.close()
                context.close()
                XCTAssertLessThan(try threadCount(), before + 3)
            }
        }
        XCTAssertLessThan(try threadCount(), before + 3)
    }

    func test_cancelling_the_task_cancels_the_generation() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("Tell me all.")], options: endless)
        let first = Shared(0)
        let task = Task {
            for try await _ in generation.steps { first.with { $0 += 1 } }
            try Task.checkCancellation()
        }
        while first.with({ $0 }) < 2 { await Task.yield() }
        task.cancel()
        do {
            try await task.value
            XCTFail("the stream ended as if it were complete")
        } catch {
            XCTAssert(error is CancellationError, "\(error)")
        }
        XCTAssertFalse(try generation.info().isDone)
        assertFails(.cancelled) { try generation.step() }

        // The context is as good as before.
        let answer = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        XCTAssertEqual(answer.answer, "42")
    }

    func test_a_task_that_is_cancelled_between_two_steps_cancels_the_generation() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("Tell me all.")], options: endless)
        let task = Task {
            for try await step in generation.steps {
                if step.index == 2 { withUnsafeCurrentTask { $0?.cancel() } }
            }
            return try generation.info().isDone
        }
        let done = try await task.value
        XCTAssertFalse(done)
        assertFails(.cancelled) { try generation.step() }
    }

    func test_whole_requests_end_with_their_task_at_any_moment() async throws {
        let context = try Context(demoModel())
        for delay in [0, 1, 5, 20, 50] {
            let task = Task { try await context.ask("Tell me all.", options: endless) }
            try await Task.sleep(nanoseconds: UInt64(delay) * 1_000_000)
            task.cancel()
            switch await task.result {
            case .success(let answer): XCTFail("answered \(answer)")
            case .failure(let error): XCTAssert(error is CancellationError, "\(error)")
            }
        }
        let task = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await context.draw(starAndRing)
        }
        switch await task.result {
        case .success: XCTFail("drew a picture")
        case .failure(let error): XCTAssert(error is CancellationError, "\(error)")
        }
    }

    func test_a_generation_that_is_cancelled_says_so() async throws {
        let context = try Context(demoModel())
        let generation = try context.beginText([.user("Tell me all.")], options: endless)
        try generation.step()
        generation.cancel()
        assertFails(.cancelled) { try generation.step() }
        await assertFailsLater(.cancelled) { try await generation.nextStep() }
        XCTAssertEqual(try generation.canvas().count, 512)
    }

    func test_an_error_of_a_callback_stops_the_generation_and_reaches_the_caller() async throws {
        let context = try Context(demoModel())
        let seen = Shared(0)
        do {
            _ = try await context.ask("Tell me all.", options: endless) { step in
                seen.with { $0 += 1 }
                if step.index == 3 { throw Refusal(reason: "enough") }
            }
            XCTFail("no error")
        } catch {
            XCTAssertEqual(error as? Refusal, Refusal(reason: "enough"))
        }
        XCTAssertEqual(seen.with { $0 }, 3)

        let generation = try context.beginText([.user("Tell me all.")], options: endless)
        XCTAssertThrowsError(try generation.run { _ in throw Refusal(reason: "at once") }) {
            XCTAssertEqual($0 as? Refusal, Refusal(reason: "at once"))
        }
        assertFails(.cancelled) { try generation.step() }
    }

    func test_a_logger_hears_its_own_context_only() throws {
        let model = try demoModel()
        let mine = Shared<[String]>([]), others = Shared<[String]>([])
        let loud = try Context(model, options: ContextOptions(logLevel: .debug)) { level, line in
            mine.with { $0.append("\(level) \(line)") }
        }
        let quiet = try Context(model, options: ContextOptions(logLevel: .error)) { _, line in
            others.with { $0.append(line) }
        }
        try loud.beginText([.user("What is 17 + 25?")]).run()
        try quiet.beginText([.user("What is 17 + 25?")]).run()
        XCTAssertFalse(mine.with { $0 }.isEmpty)
        XCTAssert(mine.with { $0 }.allSatisfy { !$0.contains("\n") })
        XCTAssertEqual(others.with { $0 }, [])
    }

    func test_an_error_of_a_logger_cancels_the_generation_and_reaches_the_caller() async throws {
        let armed = Shared(false), heard = Shared(0)
        let context = try Context(demoModel(), options: ContextOptions(logLevel: .debug)) { _, line in
            guard armed.with({ $0 }) else { return }
            heard.with { $0 += 1 }
            throw Refusal(reason: line)
        }
        let generation = try context.beginText([.user("Tell me all.")], options: endless)
        try generation.step()
        armed.with { $0 = true }
        do {
            for try await _ in generation.steps {}
            XCTFail("no error")
        } catch {
            XCTAssert(error is Refusal, "\(error)")
        }
        XCTAssertEqual(heard.with { $0 }, 1)
        armed.with { $0 = false }
        assertFails(.cancelled) { try generation.step() }
        let answer = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        XCTAssertEqual(answer.answer, "42")
    }

    func test_a_logger_lives_as_long_as_the_generations() throws {
        final class Witness: Sendable {}
        weak var witness: Witness?
        let count = Shared(0)
        func begin() throws -> Generation {
            let held = Witness()
            witness = held
            let context = try Context(demoModel(), options: ContextOptions(logLevel: .debug)) { _, _ in
                withExtendedLifetime(held) { count.with { $0 += 1 } }
            }
            return try context.beginText([.user("What is 17 + 25?")])
        }
        var generation: Generation? = try begin()
        XCTAssertNotNil(witness)
        let before = count.with { $0 }
        try generation?.run()
        XCTAssertGreaterThan(count.with { $0 }, before)
        generation = nil
        XCTAssertNil(witness)
    }

    func test_a_busy_context_says_so_and_tasks_wait_for_each_other() async throws {
        let context = try Context(demoModel())
        let expected = try expectedPicture()
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    let images = try await context.draw(starAndRing, options: ImageOptions(seed: 2))
                    XCTAssertEqual(images, [expected])
                }
                group.addTask {
                    let answer = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
                    XCTAssertEqual(answer.answer, "42")
                }
            }
            try await group.waitForAll()
        }

        // Two threads that do not wait: one of them is told.
        let busy = Shared(0)
        let ended = expectation(description: "the threads end")
        ended.expectedFulfillmentCount = 2
        let limit = Date(timeIntervalSinceNow: 60)
        for question in ["Tell me all.", "And more."] {
            let generation = try context.beginText([.user(question)], options: endless)
            Thread.detachNewThread {
                while busy.with({ $0 }) == 0, Date() < limit {
                    do {
                        try generation.step()
                    } catch {
                        XCTAssertEqual((error as? MmadaError)?.status, .busy, "\(error)")
                        busy.with { $0 += 1 }
                    }
                }
                ended.fulfill()
            }
        }
        await fulfillment(of: [ended], timeout: 120)
        XCTAssertGreaterThan(busy.with { $0 }, 0)
    }

    func test_many_contexts_of_one_model_work_at_once() async throws {
        let model = try demoModel()
        let expected = try expectedPicture()
        try await withThrowingTaskGroup(of: [RGBImage].self) { group in
            for _ in 0..<8 {
                group.addTask {
                    let context = try Context(model, options: ContextOptions(threads: 1))
                    defer { context.close() }
                    return try await context.draw(starAndRing, options: ImageOptions(seed: 2))
                }
            }
            for try await images in group { XCTAssertEqual(images, [expected]) }
        }
    }

    func test_nothing_leaks() async throws {
        func rounds(_ count: Int) async throws {
            for _ in 0..<count {
                let context = try Context(demoModel(), options: ContextOptions(threads: 1))
                _ = try await context.ask("What color is the background?", about: expectedPicture())
                let generation = try context.beginImage(starAndRing)
                try generation.step()
                _ = try generation.image()
                _ = try? RGBImage(decoding: Array("no picture".utf8))
                _ = try? context.beginText([])
            }
        }
        try await rounds(10)
        let before = try residentBytes()
        try await rounds(40)
        let grown = try residentBytes() - before
        // A context of the demo model has megabytes of buffers: one that is not freed in each round would be seen.
        XCTAssertLessThan(grown, 30 << 20)
    }
}

/// Anonymous memory of this process that is in use: without mapped files.
func residentBytes() throws -> Int {
    let status = try String(contentsOfFile: "/proc/self/status", encoding: .utf8)
    let line = try XCTUnwrap(status.split(separator: "\n").first { $0.hasPrefix("RssAnon:") })
    return try XCTUnwrap(Int(line.split(separator: " ")[1])) * 1024
}
