import Foundation
import XCTest

@testable import Mmada

final class RGBImageTests: XCTestCase {
    func test_png_keeps_every_pixel() throws {
        for (width, height) in [(1, 1), (3, 7), (64, 64), (131, 17)] {
            let image = try noise(width: width, height: height, seed: UInt64(width * 1000 + height))
            XCTAssertEqual(try RGBImage(decoding: image.encoded(as: .png)), image)
        }
    }

    func test_jpeg_keeps_sizes_and_looks() throws {
        let picture = try expectedPicture()
        let file = try picture.encoded(as: .jpeg)
        XCTAssertEqual(Array(file.prefix(3)), [0xff, 0xd8, 0xff])
        let back = try RGBImage(decoding: Data(file))
        XCTAssertEqual([back.width, back.height], [picture.width, picture.height])
        let difference = zip(back.pixels, picture.pixels).map { abs(Int($0) - Int($1)) }.reduce(0, +)
        XCTAssertLessThan(difference / picture.pixels.count, 12)
        XCTAssertNotEqual(back, picture)
    }

    func test_files_are_written_and_read() throws {
        let image = try noise(width: 5, height: 9, seed: 3)
        let path = try scratchFile("a picture ☂.png")
        try image.write(toPath: path)
        XCTAssertEqual(try RGBImage(path: path), image)
        let file = URL(fileURLWithPath: try scratchFile("b.PNG"))
        try image.write(to: file)
        XCTAssertEqual(try RGBImage(contentsOf: file), image)
        assertFails(.invalidArgument) { try image.write(toPath: path + ".bmp") }
        assertFails(.invalidArgument) { try image.write(toPath: "/no/such/folder/a.png") }
        assertFails(.invalidArgument) { try image.write(to: XCTUnwrap(URL(string: "https://example.org/a.png"))) }
    }

    func test_pixels_and_sizes_must_agree() throws {
        assertFails(.badImage, saying: "0x4") { try RGBImage(width: 0, height: 4, pixels: []) }
        assertFails(.badImage) { try RGBImage(width: -1, height: -1, pixels: [1, 2, 3]) }
        assertFails(.badImage) { try RGBImage(width: .max, height: .max, pixels: [1, 2, 3]) }
        assertFails(.badImage, saying: "12 bytes and not 11") {
            try RGBImage(width: 2, height: 2, pixels: Array(repeating: 7, count: 11))
        }
    }

    func test_what_is_no_picture_is_an_error() throws {
        assertFails(.badImage) { try RGBImage(decoding: []) }
        assertFails(.badImage) { try RGBImage(decoding: Array("no picture".utf8)) }
        let cut = try noise(width: 30, height: 30, seed: 4).encoded(as: .png).prefix(100)
        assertFails(.badImage) { try RGBImage(decoding: cut) }
        assertFails(.ioError, saying: "/no/such.png") { try RGBImage(path: "/no/such.png") }
    }

    func test_pictures_are_values() throws {
        let image = try noise(width: 4, height: 4, seed: 5)
        let same = try noise(width: 4, height: 4, seed: 5)
        XCTAssertEqual(Set([image, same, try noise(width: 4, height: 4, seed: 6)]).count, 2)
    }
}
