#!/usr/bin/env python3
"""Writes tests/golden/judge_templates.txt: the ideal outlines that the judge of drawn scenes compares with.

The demo model draws seven shapes at four radii. Each is painted here in white on black at four times the
size, reduced to 64x64 with a Lanczos filter as the training pictures were, cut at half brightness and cropped
to what is left. The judge (tests/demo/judge.rs) reads the result, so that the tests need no painter.

    pip install pillow && python3 scripts/make-judge-templates.py > tests/golden/judge_templates.txt

Format: for each template a line `shape radius columns rows`, then its rows, `#` for the shape and `.` for none.
"""
import math

from PIL import Image, ImageDraw

SIDE = 64  # of a scene, in pixels
OVERSAMPLING = 4
RADII = (8.8, 12.5, 13, 24)  # three in a row; two; one small; one large

# Polygons in units of the radius, y downwards.
POLYGONS = {
    "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "star": [
        (length * math.cos(angle), length * math.sin(angle))
        for point in range(10)
        for length, angle in [(0.42 if point % 2 else 1, -math.pi / 2 + point * math.pi / 5)]
    ],
}
# Boxes in units of the radius: half width, half height.
BOXES = {"square": [(0.87, 0.87)], "cross": [(1, 0.36), (0.36, 1)]}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond")


def paint(canvas, shape, centre, radius):
    """Fills `shape` in white; a ring has a hole of 0.55 of its radius."""

    def box(half_width, half_height):
        return [centre - half_width, centre - half_height, centre + half_width, centre + half_height]

    if shape in POLYGONS:
        canvas.polygon([(centre + radius * x, centre + radius * y) for x, y in POLYGONS[shape]], fill=255)
    elif shape in BOXES:
        for half_width, half_height in BOXES[shape]:
            canvas.rectangle(box(radius * half_width, radius * half_height), fill=255)
    else:
        canvas.ellipse(box(radius, radius), fill=255)
        if shape == "ring":
            hole = radius * 0.55
            canvas.ellipse(box(hole, hole), fill=0)


def outline(shape, radius):
    """The rows of the cropped template, as lists of booleans."""
    picture = Image.new("L", (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), 0)
    paint(ImageDraw.Draw(picture), shape, SIDE * OVERSAMPLING / 2, radius * OVERSAMPLING)
    solid = picture.resize((SIDE, SIDE), Image.LANCZOS).point(lambda value: 255 if value > 127 else 0)
    solid = solid.crop(solid.getbbox())
    return [[solid.getpixel((x, y)) > 0 for x in range(solid.width)] for y in range(solid.height)]


def main():
    for shape in SHAPES:
        for radius in RADII:
            rows = outline(shape, radius)
            print(shape, radius, len(rows[0]), len(rows))
            for row in rows:
                print("".join("#" if solid else "." for solid in row))


if __name__ == "__main__":
    main()
