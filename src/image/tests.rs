//! Files in every shape that they come in, whole and damaged.

use std::io::Cursor;

use ::image::codecs::gif::GifEncoder;
use ::image::metadata::Orientation;
use ::image::{Frame, GrayAlphaImage, GrayImage, ImageBuffer, Luma, Rgba, RgbaImage};

use super::*;

/// A picture without any symmetry.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        ::image::Rgb([(x * 37 + y * 5) as u8, (x * x + 11 * y) as u8, (200 + 253 * x + y * y) as u8])
    })
}

fn png(image: &DynamicImage) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, ImageFormat::Png).unwrap();
    out.into_inner()
}

fn jpeg(image: &RgbImage, exif: Option<Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut out, 100);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).unwrap();
    }
    encoder.write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8).unwrap();
    out
}

/// An EXIF block with the orientation tag alone (TIFF, little-endian).
fn exif(orientation: u8) -> Vec<u8> {
    let mut out = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    out.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    out
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

fn refused(bytes: &[u8], part: &str) {
    let error = decode(bytes, "cat.png").unwrap_err();
    assert!(matches!(error, Error::Image { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cat.png: ") && error.to_string().contains(part), "`{error}` lacks `{part}`");
}

#[test]
fn alpha_is_dropped_gray_is_repeated_and_16_bits_become_8() {
    let rgb = picture(7, 5);
    assert_eq!(decode(&png(&rgb.clone().into()), "a").unwrap(), rgb);
    let clear = RgbaImage::from_fn(7, 5, |x, y| {
        let [r, g, b] = rgb.get_pixel(x, y).0;
        Rgba([r, g, b, (x * 30) as u8])
    });
    assert_eq!(decode(&png(&clear.into()), "a").unwrap(), rgb);
    let gray = GrayImage::from_fn(7, 5, |x, y| Luma([(x * 30 + y) as u8]));
    let want = RgbImage::from_fn(7, 5, |x, y| ::image::Rgb([(x * 30 + y) as u8; 3]));
    assert_eq!(decode(&png(&gray.into()), "a").unwrap(), want);
    let gray_alpha = GrayAlphaImage::from_fn(7, 5, |x, y| ::image::LumaA([(x * 30 + y) as u8, 9]));
    assert_eq!(decode(&png(&gray_alpha.into()), "a").unwrap(), want);
    let deep: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_fn(7, 5, |x, y| Luma([(x * 30 + y) as u16 * 257]));
    assert_eq!(decode(&png(&deep.into()), "a").unwrap(), want);
}

#[test]
fn the_orientation_of_the_camera_is_applied() {
    let rgb = picture(24, 16);
    for value in 1..=8 {
        let mut want = DynamicImage::from(rgb.clone());
        want.apply_orientation(Orientation::from_exif(value).unwrap());
        let got = decode(&jpeg(&rgb, Some(exif(value))), "photo.jpg").unwrap();
        assert_eq!(got.dimensions(), if value < 5 { (24, 16) } else { (16, 24) });
        let plain = decode(&jpeg(&rgb, None), "photo.jpg").unwrap();
        let mut turned = DynamicImage::from(plain);
        turned.apply_orientation(Orientation::from_exif(value).unwrap());
        assert_eq!(got, turned.into_rgb8(), "orientation {value}");
    }
    // 6: the top row of the file is the right side of the picture.
    let got = decode(&jpeg(&picture(1, 2), Some(exif(6))), "photo.jpg").unwrap();
    assert_eq!(got.dimensions(), (2, 1));
}

#[test]
fn a_gif_gives_its_first_frame() {
    // Few colors, so that the palette is exact.
    let frame = |shade: u8| RgbaImage::from_fn(9, 4, |x, _| Rgba([shade, (x % 3) as u8 * 90, 30, 255]));
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.encode_frames([frame(10), frame(200)].map(Frame::new)).unwrap();
    drop(encoder);
    let got = decode(&bytes, "film.gif").unwrap();
    assert_eq!(got, DynamicImage::from(frame(10)).into_rgb8());
    refused(&bytes[..bytes.len() / 3], "");
}

#[test]
fn a_picture_cut_off_anywhere_is_refused() {
    let rgb = picture(40, 30);
    for (bytes, step) in [(png(&rgb.clone().into()), 7), (jpeg(&rgb, Some(exif(3))), 3)] {
        let whole = decode(&bytes, "cat.png").unwrap();
        assert_eq!(whole.dimensions(), (40, 30));
        // A PNG without its last chunk, which is empty, still has every pixel.
        let end = bytes.len() - if bytes[0] == 0x89 { 14 } else { 0 };
        for cut in (0..end).step_by(step) {
            refused(&bytes[..cut], "");
        }
    }
}

#[test]
fn a_picture_with_flipped_bits_is_an_error_or_a_picture_but_no_panic() {
    let rgb = picture(33, 21);
    let mut state = 88_172_645_463_325_252u64;
    let mut errors = 0;
    for bytes in [png(&rgb.clone().into()), jpeg(&rgb, Some(exif(6)))] {
        for _ in 0..400 {
            let mut bytes = bytes.clone();
            for _ in 0..3 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = (state >> 8) as usize % bytes.len();
                bytes[at] ^= 1 << (state & 7);
            }
            errors += usize::from(decode(&bytes, "cat.png").is_err());
        }
    }
    assert!(errors > 100, "{errors}");
}

#[test]
fn what_is_no_picture_is_refused_with_a_reason() {
    refused(b"", "is not a picture");
    refused(b"GGUF\x03\0\0\0 and more", "is not a picture");
    refused(b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "is a BMP picture");
    refused(&[0xff, 0xd8, 0xff, 0xd9], "no picture data");
    refused(&[0xff, 0xd8, 0xff, 0xe0, 0, 1, 0xff, 0xd9], "length 1");
    let mut gif = b"GIF89a\0\0\x05\0\0\0\0\x2c\0\0\0\0\0\0\0\0\0\x02\x00\x3b".to_vec();
    refused(&gif, "no pixels (0x5)");
    gif.truncate(9);
    refused(&gif, "cannot be decoded");
    let error = open("no/such/file.png").unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("no/such/file.png"), "{error}");
    assert!(open(std::env::temp_dir()).is_err());
}

/// A PNG whose header claims a size and whose data are zeros that inflate to `rows` bytes: a bomb.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(&picture(3, 3).into());
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The checksum of PNG chunks (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    })
}

#[test]
fn pictures_that_would_fill_the_memory_are_refused() {
    refused(&bomb(MAX_SIDE + 1, 1), "at most 16384x16384 pixels");
    refused(&bomb(1, u32::MAX >> 1), "at most 16384x16384 pixels");
    refused(&bomb(MAX_SIDE, MAX_SIDE), "512 MiB");
    // A size within the limits whose data are missing fails on the data.
    refused(&bomb(300, 300), "cannot be decoded");
}

#[test]
fn a_saved_picture_is_read_back_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = picture(31, 17);
    for name in ["a.png", "b.JPG", "c.jpeg"] {
        let path = folder.path().join(name);
        fs::write(&path, "what was there").unwrap();
        save(&rgb, &path).unwrap();
        let got = open(&path).unwrap();
        if name == "a.png" {
            assert_eq!(got, rgb);
        } else {
            assert!(mean_difference(&got, &rgb) < 40.0);
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn a_picture_that_cannot_be_written_says_why_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = picture(4, 4);
    let says = |path: PathBuf, part: &str| {
        for error in [save(&rgb, &path).unwrap_err(), check_target(&path).unwrap_err()] {
            let sentence = error.to_string();
            assert!(
                sentence.contains(path.to_str().unwrap()) && sentence.contains(part),
                "`{sentence}` lacks `{part}`"
            );
        }
    };
    says(folder.path().join("a.webp"), "not as .webp");
    says(folder.path().join("a"), "must end in .png or .jpg");
    says(folder.path().join("gone/a.png"), "gone does not exist");
    fs::create_dir(folder.path().join("dir.png")).unwrap();
    says(folder.path().join("dir.png"), "is a folder");
    assert!(save(&RgbImage::new(0, 3), folder.path().join("empty.png")).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn any_shape_becomes_a_square() {
    for (width, height) in [(1, 1), (1, 9), (16384, 1), (1, 16384), (2, 3), (129, 64), (64, 131)] {
        let image = picture(width, height);
        for mode in [Fit::Crop, Fit::Squash] {
            assert_eq!(fit(&image, 64, mode).unwrap().dimensions(), (64, 64), "{width}x{height} {mode:?}");
        }
    }
    // One color stays that color, whatever the shape.
    let plain = RgbImage::from_pixel(1, 700, ::image::Rgb([3, 129, 254]));
    assert!(fit(&plain, 48, Fit::Crop).unwrap().pixels().all(|p| p.0 == [3, 129, 254]));
    // The right size already: nothing changes.
    assert_eq!(fit(&picture(40, 40), 40, Fit::Crop).unwrap(), picture(40, 40));
    for (image, size) in [(RgbImage::new(0, 5), 8), (RgbImage::new(5, 0), 8), (picture(4, 4), 0)] {
        assert!(matches!(fit(&image, size, Fit::Squash), Err(Error::InvalidArgument(_))));
        assert!(matches!(bicubic(&image, size, size), Err(Error::InvalidArgument(_))));
    }
}

#[test]
fn the_crop_is_the_middle_of_the_whole_resized_picture() {
    // 50 x 31 to 20: the longer side becomes 32 (truncated from 32.26), the crop begins at 6.
    let image = picture(50, 31);
    let (cropped, whole) = (fit(&image, 20, Fit::Crop).unwrap(), bicubic(&image, 32, 20).unwrap());
    for (x, y, pixel) in cropped.enumerate_pixels() {
        assert_eq!(pixel, whole.get_pixel(x + 6, y));
    }
    // Offsets that end in a half go to the even neighbour: 21 - 16 = 5 to 2, 23 - 16 = 7 to 4.
    for (long, offset) in [(21, 2), (23, 4)] {
        let image = picture(16, long);
        let cropped = fit(&image, 16, Fit::Crop).unwrap();
        assert!(cropped.enumerate_pixels().all(|(x, y, p)| p == image.get_pixel(x, y + offset)));
    }
}

#[test]
fn pixels_map_to_the_unit_range_and_back() {
    let image = RgbImage::from_raw(2, 1, vec![0, 255, 51, 1, 254, 128]).unwrap();
    let unit = to_unit(&image).unwrap();
    assert_eq!(&unit[..3], [-1.0, 1.0, 51.0 / 127.5 - 1.0]);
    let back = from_unit(&[-1.5, -1.0, 0.0, 0.999, 1.0, f32::INFINITY], 2, 1).unwrap();
    assert_eq!(back.as_raw(), &[0, 0, 127, 254, 255, 255]);
    assert!(from_unit(&unit, 2, 2).is_err());
    assert!(from_unit(&unit, usize::MAX, usize::MAX).is_err());
}

#[test]
fn pictures_become_files_in_memory_and_come_back() {
    let picture = RgbImage::from_fn(37, 21, |x, y| ::image::Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8]));
    let png = encode_png(&picture).unwrap();
    assert_eq!(decode(&png, "memory").unwrap(), picture);
    let jpeg = encode_jpeg(&picture).unwrap();
    let back = decode(&jpeg, "memory").unwrap();
    assert_eq!(back.dimensions(), (37, 21));
    let difference: u64 = back.as_raw().iter().zip(picture.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    assert!(difference / (37 * 21 * 3) < 12, "{difference}");
    let error = encode_png(&RgbImage::new(0, 5)).unwrap_err().to_string();
    assert_eq!(error, "a picture of 0x5 pixels: cannot be encoded: it has no pixels");
    assert!(encode_jpeg(&RgbImage::new(70_000, 1)).unwrap_err().to_string().contains("cannot be encoded"));
}
