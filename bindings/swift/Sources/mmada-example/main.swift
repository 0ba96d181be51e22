// Draws, or asks a question (about a picture if one is given), and shows how the result comes about:
//
//     mmada-example MODEL.gguf draw PROMPT OUT.png [SEED]
//     mmada-example MODEL.gguf ask QUESTION [PICTURE]

import Foundation
import Mmada

func fail(_ message: String, code: Int32) -> Never {
    FileHandle.standardError.write(Data("mmada-example: \(message)\n".utf8))
    exit(code)
}

func show(_ line: String) {
    FileHandle.standardError.write(Data("\(line)\n".utf8))
}

func draw(_ context: Context, prompt: String, file: String, seed: UInt64) async throws {
    let images = try await context.draw(prompt, options: ImageOptions(seed: seed)) { step in
        show("step \(step.index) of \(step.total): \(step.changes.count) codes")
    }
    try images[0].write(toPath: file)
}

func ask(_ context: Context, question: String, picture: String?) async throws {
    let image = try picture.map { try RGBImage(path: $0) }
    let options = TextOptions(thinking: image == nil)
    let generation = try context.beginText([.user(question, image: image)], options: options)
    defer { generation.close() }
    for try await step in generation.steps {
        show("step \(step.index) of \(step.total): \(try generation.text())")
    }
    try Task.checkCancellation()
    print(try generation.answer())
}

let arguments = Array(CommandLine.arguments.dropFirst())
guard arguments.count >= 3 else {
    fail("usage: mmada-example MODEL.gguf draw PROMPT OUT.png [SEED] | ask QUESTION [PICTURE]", code: 2)
}
do {
    let model = try Model(path: arguments[0])
    let context = try Context(model)
    defer {
        context.close()
        model.close()
    }
    switch (arguments[1], arguments.count) {
    case ("draw", 4...5):
        guard let seed = UInt64(arguments.count > 4 ? arguments[4] : "0") else {
            fail("the seed is no number: \(arguments[4])", code: 2)
        }
        try await draw(context, prompt: arguments[2], file: arguments[3], seed: seed)
    case ("ask", 3...4):
        try await ask(context, question: arguments[2], picture: arguments.count > 3 ? arguments[3] : nil)
    default:
        fail("neither draw with two or three arguments nor ask with one or two", code: 2)
    }
} catch {
    fail("\(error)", code: 1)
}
