import CMmada
import Foundation

/// A picture of 8-bit RGB pixels: a value, copied and compared like an array.
public struct RGBImage: Sendable, Hashable {
    /// Pixels in a row.
    public let width: Int
    /// Rows of pixels.
    public let height: Int
    /// Red, green and blue of every pixel, [height, width, 3], row by row from the top left, without gaps.
    public let pixels: [UInt8]

    /// File formats that pictures are encoded in.
    public enum Format: UInt32, Sendable, CaseIterable {
        /// Without loss.
        case png = 0
        /// Quality 95 of 100.
        case jpeg = 1
    }

    /// A picture of pixels, of which there must be `width * height * 3` bytes.
    ///
    /// - Throws: `MmadaError` with `.badImage` for a side that is not 1...16384 or another number of bytes.
    public init(width: Int, height: Int, pixels: [UInt8]) throws {
        let sides = 1...16384
        guard sides.contains(width), sides.contains(height) else {
            throw MmadaError(.badImage, "a picture of \(width)x\(height) pixels: sides are 1 to 16384")
        }
        guard pixels.count == width * height * 3 else {
            throw MmadaError(
                .badImage,
                "a picture of \(width)x\(height) pixels has \(width * height * 3) bytes and not \(pixels.count)")
        }
        self.width = width
        self.height = height
        self.pixels = pixels
    }

    /// Reads a PNG, JPEG or GIF file (its first frame).
    ///
    /// - Throws: `MmadaError` with `.ioError`, or `.badImage` for what is no such picture, damaged, or too large.
    public init(path: String) throws {
        try self.init(taking: take { image, error in path.withC { mmada_image_load($0, $1, image, error) } })
    }

    /// Reads a PNG, JPEG or GIF file (its first frame).
    public init(contentsOf file: URL) throws {
        try self.init(path: try path(of: file))
    }

    /// Decodes the bytes of a PNG, JPEG or GIF file (its first frame).
    ///
    /// - Throws: `MmadaError` with `.badImage` for what is no such picture, damaged, or too large.
    public init(decoding file: some Sequence<UInt8>) throws {
        let bytes = Array(file)
        try self.init(
            taking: take { image, error in
                withArena { mmada_image_decode($0.copy(bytes), bytes.count, image, error) }
            })
    }

    /// Takes over a picture of the library.
    init(taking image: OpaquePointer?) throws {
        defer { mmada_image_free(image) }
        width = mmada_image_width(image)
        height = mmada_image_height(image)
        pixels = Array(UnsafeBufferPointer(start: mmada_image_pixels(image), count: width * height * 3))
    }

    /// A picture of the library's, which the caller frees.
    func makeC() throws -> OpaquePointer? {
        try take { image, error in
            pixels.withUnsafeBufferPointer {
                mmada_image_from_rgb($0.baseAddress, width, height, 0, image, error)
            }
        }
    }

    /// The bytes of a file with this picture.
    public func encoded(as format: Format) throws -> [UInt8] {
        let image = try makeC()
        defer { mmada_image_free(image) }
        let buffer = try take { mmada_image_encode(image, format.rawValue, $0, $1) }
        defer { mmada_buffer_free(buffer) }
        return Array(UnsafeBufferPointer(start: mmada_buffer_bytes(buffer), count: mmada_buffer_length(buffer)))
    }

    /// Writes the picture to a file whose name ends in .png, .jpg or .jpeg. The file appears whole or not at all, in the
    /// place of an existing one.
    ///
    /// - Throws: `MmadaError` with `.ioError`, or `.invalidArgument` for another ending or a missing folder.
    public func write(toPath path: String) throws {
        let image = try makeC()
        defer { mmada_image_free(image) }
        try check { error in path.withC { mmada_image_save(image, $0, $1, error) } }
    }

    /// Writes the picture to a file whose name ends in .png, .jpg or .jpeg.
    public func write(to file: URL) throws {
        try write(toPath: try path(of: file))
    }
}

/// The path of a file that a URL stands for.
func path(of url: URL) throws -> String {
    guard url.isFileURL else { throw MmadaError(.invalidArgument, "\(url) is no file on this machine") }
    return url.path
}
