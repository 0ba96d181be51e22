import Foundation
import XCTest

@testable import Mmada

let starAndRing = "a yellow star above a purple ring on a black background"

/// What bindings/swift/test sets. Without it nothing can be tested, which is a failure and no reason to skip.
func environment(_ name: String) throws -> String {
    guard let value = ProcessInfo.processInfo.environment[name] else {
        throw MmadaError(.notFound, "\(name) is not set: run bindings/swift/test")
    }
    return value
}

func demoModel() throws -> Model {
    try Model(path: environment("MMADA_MODEL"))
}

func expectedPicture() throws -> RGBImage {
    try RGBImage(path: environment("MMADA_PICTURE"))
}

func scratchFile(_ name: String) throws -> String {
    try environment("MMADA_SCRATCH") + "/" + name
}

/// Noise, the same for the same seed.
func noise(width: Int, height: Int, seed: UInt64) throws -> RGBImage {
    var state = seed
    let pixels = (0..<width * height * 3).map { _ -> UInt8 in
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return UInt8(truncatingIfNeeded: state >> 56)
    }
    return try RGBImage(width: width, height: height, pixels: pixels)
}

/// Expects an error of that status whose sentence has `words` in it.
func assertFails<T>(
    _ status: MmadaError.Status, saying words: String = "", file: StaticString = #filePath, line: UInt = #line,
    _ body: () throws -> T
) {
    XCTAssertThrowsError(try body(), file: file, line: line) {
        assertIs($0, status, saying: words, file: file, line: line)
    }
}

/// As `assertFails`, for what is asynchronous.
func assertFailsLater<T: Sendable>(
    _ status: MmadaError.Status, saying words: String = "", file: StaticString = #filePath, line: UInt = #line,
    _ body: @Sendable () async throws -> T
) async {
    do {
        _ = try await body()
        XCTFail("no error", file: file, line: line)
    } catch {
        assertIs(error, status, saying: words, file: file, line: line)
    }
}

func assertIs(
    _ error: any Error, _ status: MmadaError.Status, saying words: String, file: StaticString, line: UInt
) {
    guard let error = error as? MmadaError else {
        XCTFail("another error: \(error)", file: file, line: line)
        return
    }
    XCTAssertEqual(error.status, status, error.message, file: file, line: line)
    XCTAssertFalse(error.message.isEmpty, file: file, line: line)
    XCTAssert(
        words.isEmpty || error.message.contains(words), "\"\(error.message)\" lacks \"\(words)\"", file: file,
        line: line)
}

/// An error of the caller's own, thrown by callbacks.
struct Refusal: Error, Equatable {
    let reason: String
}

/// A value that several threads use.
final class Shared<T>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: T

    init(_ value: T) {
        self.value = value
    }

    @discardableResult
    func with<R>(_ body: (inout T) throws -> R) rethrows -> R {
        try lock.withLock { try body(&value) }
    }
}

/// Threads of this process.
func threadCount() throws -> Int {
    try FileManager.default.contentsOfDirectory(atPath: "/proc/self/task").count
}
