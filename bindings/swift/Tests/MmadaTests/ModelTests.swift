import Foundation
import XCTest

@testable import Mmada

final class ModelTests: XCTestCase {
    func test_a_model_says_what_it_is() throws {
        let model = try demoModel()
        let info = try model.info()
        XCTAssert(info.hasImages)
        XCTAssertEqual(info.imageSize, 64)
        XCTAssertGreaterThan(info.imageCodes, 0)
        XCTAssertEqual(info.imageSize % info.imageDownsampling, 0)
        XCTAssertLessThan(Int(info.maskID), info.vocabulary)
        let file = try FileManager.default.attributesOfItem(atPath: environment("MMADA_MODEL"))
        XCTAssertEqual(info.fileBytes, (file[.size] as? NSNumber)?.intValue)
    }

    func test_metadata_is_a_text_a_number_or_nothing() throws {
        let model = try demoModel()
        let keys = try model.metadataKeys()
        XCTAssert(keys.contains("general.architecture"), "\(keys)")
        let architecture = try XCTUnwrap(model.metadata("general.architecture"))
        let length = try XCTUnwrap(model.metadata("\(architecture).context_length"))
        XCTAssertEqual(Int(length), try model.info().contextLength)
        XCTAssertNil(try model.metadata("general.no such key"))
    }

    func test_texts_and_ids_become_each_other() throws {
        let model = try demoModel()
        let text = "a red circle, 17 + 25; ünïcode ☂ and a \0 inside"
        XCTAssertEqual(try model.detokenize(try model.tokenize(text)), text)
        XCTAssertEqual(try model.tokenize(""), [])
        XCTAssertEqual(try model.detokenize([]), "")
    }

    func test_special_tokens_are_ordinary_text_unless_asked_for() throws {
        let model = try demoModel()
        let info = try model.info()
        let eos = try model.detokenize([info.eosID], skipSpecial: false)
        XCTAssertEqual(try model.tokenize(eos, parseSpecial: true), [info.eosID])
        XCTAssertFalse(try model.tokenize(eos).contains(info.eosID))
        XCTAssertEqual(try model.detokenize([info.eosID]), "")
    }

    func test_a_chat_becomes_ids() throws {
        let model = try demoModel()
        let short = try model.promptIDs([.user("What is 17 + 25?")])
        let long = try model.promptIDs(
            [.system("Be brief."), .user("What is 17 + 25?"), .assistant("42"), .user("And 30 + 12?")])
        XCTAssertLessThan(short.count, long.count)
        XCTAssertNotEqual(short, try model.promptIDs([.user("What is 17 + 25?")], thinking: true))
        assertFails(.invalidArgument) { try model.promptIDs([]) }
        let image = try noise(width: 3, height: 2, seed: 1)
        assertFails(.unsupported) { try model.promptIDs([.user("What is this?", image: image)]) }
    }

    func test_a_model_opens_from_a_descriptor_and_from_memory_that_it_keeps() async throws {
        let path = try environment("MMADA_MODEL")
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: path))
        let fromDescriptor = try Model(fileDescriptor: file.fileDescriptor, name: "descriptor")
        try file.close()
        XCTAssertEqual(try fromDescriptor.info(), try demoModel().info())

        // The bytes are the package's to keep for as long as anything uses them.
        var context: Context
        do {
            let fromMemory = try Model(bytes: Data(contentsOf: URL(fileURLWithPath: path)), name: "memory")
            context = try Context(fromMemory)
            fromMemory.close()
        }
        let generation = try context.beginText([.user("What is 17 + 25?")], options: TextOptions(thinking: true))
        context = try Context(fromDescriptor)
        try await generation.finish()
        XCTAssertEqual(try generation.answer(), "42")
        assertFails(.badFormat, saying: "short: ") { try Model(bytes: [UInt8]("GGUF".utf8), name: "short") }
    }

    func test_reading_a_model_tells_of_progress_and_can_be_stopped() throws {
        let path = try environment("MMADA_MODEL")
        var reports: [(UInt64, UInt64)] = []
        let model = try Model(path: path, options: OpenOptions(useMmap: false)) { reports.append(($0, $1)) }
        let size = UInt64(try model.info().fileBytes)
        XCTAssertEqual(reports.last?.0, size)
        XCTAssert(reports.allSatisfy { $0.1 == size })

        XCTAssertThrowsError(
            try Model(path: path, options: OpenOptions(useMmap: false)) { _, _ in
                throw Refusal(reason: "enough")
            }
        ) { XCTAssertEqual($0 as? Refusal, Refusal(reason: "enough")) }
    }

    func test_what_is_no_model_is_an_error_that_names_the_file() throws {
        assertFails(.ioError, saying: "/no/such/file.gguf: ") { try Model(path: "/no/such/file.gguf") }
        assertFails(.badFormat, saying: "expected.png: ") { try Model(path: environment("MMADA_PICTURE")) }
        assertFails(.invalidArgument) { try Model(contentsOf: XCTUnwrap(URL(string: "https://example.org/a.gguf"))) }
        assertFails(.ioError) { try Model(path: "") }
        do {
            _ = try Model(path: "/no/such/file.gguf")
        } catch {
            XCTAssert(error.localizedDescription.contains("/no/such/file.gguf"), error.localizedDescription)
            XCTAssertEqual((error as? MmadaError)?.status.description, "MMADA_IO_ERROR")
        }
    }

    func test_estimates_grow_with_the_request() throws {
        let model = try demoModel()
        let less = try model.estimateText(
            promptTokens: 10, options: TextOptions(genLength: 32, steps: 16, blockLength: 32))
        let more = try model.estimateText(
            promptTokens: 10, options: TextOptions(genLength: 64, steps: 32, blockLength: 32))
        XCTAssertLessThan(less.multiplyAdds, more.multiplyAdds)
        XCTAssertLessThan(less.tokens, more.tokens)
        let one = try model.estimateImage(promptTokens: 10)
        let two = try model.estimateImage(promptTokens: 10, options: ImageOptions(count: 2))
        XCTAssertLessThan(one.scratchBytes, two.scratchBytes)
        XCTAssertGreaterThan(try Context(model).estimateSeconds(two), 0)
        assertFails(.invalidArgument, saying: "promptTokens is -1") { try model.estimateText(promptTokens: -1) }
    }

    func test_what_is_recommended_can_be_seen_and_is_what_nil_means() async throws {
        let model = try demoModel()
        let recommended = try model.recommendedTextOptions(thinking: true)
        XCTAssert(recommended.thinking)
        XCTAssertNotNil(recommended.genLength)
        XCTAssertNotNil(recommended.remasking)
        let context = try Context(model)
        let explicit = try await context.ask("What is 17 + 25?", options: recommended)
        let implicit = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        XCTAssertEqual(explicit, implicit)
        XCTAssertEqual(try model.recommendedImageOptions().width, 64)
        XCTAssertNotNil(try model.recommendedDescriptionOptions().steps)
    }

    func test_a_closed_model_is_an_error_and_its_contexts_go_on() async throws {
        let model = try demoModel()
        let context = try Context(model)
        model.close()
        model.close()
        assertFails(.invalidHandle, saying: "the model is used after close()") { try model.info() }
        assertFails(.invalidHandle) { try model.metadataKeys() }
        assertFails(.invalidHandle) { try model.tokenize("a") }
        assertFails(.invalidHandle) { try model.promptIDs([.user("a")]) }
        assertFails(.invalidHandle) { try model.estimateText(promptTokens: 1) }
        assertFails(.invalidHandle) { try model.recommendedImageOptions() }
        assertFails(.invalidHandle) { try Context(model) }
        let answer = try await context.ask("What is 17 + 25?", options: TextOptions(thinking: true))
        XCTAssertEqual(answer.answer, "42")
    }

    func test_the_library_says_what_it_is() throws {
        XCTAssertEqual(Library.version, "0.1.0")
        XCTAssert(Library.buildInfo.contains(Library.version))
        let devices = try Library.devices()
        XCTAssertEqual(devices.first?.backend, "cpu")
        XCTAssert(try XCTUnwrap(devices.first).instructionSets.contains("portable"))
    }
}
