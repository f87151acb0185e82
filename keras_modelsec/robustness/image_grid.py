"""Draws clean and adversarial images with their predictions, in NumPy alone."""

import numpy as np

# Each glyph is five rows of three pixels, top to bottom, "#" for ink.
_GLYPHS = {
    "0": "###|#.#|#.#|#.#|###",
    "1": ".#.|##.|.#.|.#.|###",
    "2": "###|..#|###|#..|###",
    "3": "###|..#|.##|..#|###",
    "4": "#.#|#.#|###|..#|..#",
    "5": "###|#..|###|..#|###",
    "6": "###|#..|###|#.#|###",
    "7": "###|..#|.#.|.#.|.#.",
    "8": "###|#.#|###|#.#|###",
    "9": "###|#.#|###|..#|###",
    "-": "...|...|###|...|...",
}
_GLYPH_SCALE = 3
_SMALLEST_SIDE = 72
_GAP = 4
_RIGHT = (30, 130, 60)
_WRONG = (200, 40, 40)
_PAPER = 255


def are_images(array: np.ndarray) -> bool:
    """Whether an input is (examples, height, width) or has 1 or 3 channels last."""
    return array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3))


def draw_grid(
    clean: np.ndarray,
    adversarial: np.ndarray,
    predictions: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    bounds: tuple[float, float] | None,
) -> np.ndarray:
    """One column for each example: the clean image, the adversarial one, what was added.

    Over each image stands the predicted class, green if it is the true one and red if not. What was
    added is stretched to the full range around grey.

    Args:
        clean: Images, (examples, height, width) or with 1 or 3 channels last.
        adversarial: As `clean`.
        predictions: Predicted classes on clean and on adversarial images, (examples,) each.
        labels: True classes, (examples,).
        bounds: The values shown as black and white; None for those that occur.

    Returns:
        uint8 array (height, width, 3).
    """
    low, high = bounds or (float(clean.min()), float(clean.max()))
    added = adversarial - clean
    largest = float(np.abs(added).max()) or 1.0
    rows = [
        _row((clean - low) / (high - low), predictions[0], labels),
        _row((adversarial - low) / (high - low), predictions[1], labels),
        _row(added / (2 * largest) + 0.5, None, labels),
    ]
    return np.concatenate(rows, axis=0)


def _row(images: np.ndarray, predictions: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    tiles = []
    for index, image in enumerate(images):
        picture = _picture(image)
        strip = np.full((5 * _GLYPH_SCALE + 2 * _GAP, picture.shape[1], 3), _PAPER, "uint8")
        if predictions is not None:
            right = predictions[index] == labels[index]
            _write(strip, str(int(predictions[index])), _RIGHT if right else _WRONG)
        tile = np.concatenate([strip, picture], axis=0)
        tiles.append(np.pad(tile, ((0, _GAP), (_GAP, _GAP), (0, 0)), constant_values=_PAPER))
    return np.concatenate(tiles, axis=1)


def _picture(image: np.ndarray) -> np.ndarray:
    """A uint8 RGB picture, enlarged by whole pixels until it can be seen in a browser."""
    if image.ndim == 2:
        image = image[..., None]
    pixels = np.round(np.clip(image, 0.0, 1.0) * 255).astype("uint8")
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    factor = max(1, -(-_SMALLEST_SIDE // min(pixels.shape[:2])))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _write(strip: np.ndarray, text: str, colour: tuple[int, int, int]) -> None:
    left = _GAP
    for character in text:
        rows = _GLYPHS[character].split("|")
        ink = np.array([[pixel == "#" for pixel in row] for row in rows])
        ink = ink.repeat(_GLYPH_SCALE, axis=0).repeat(_GLYPH_SCALE, axis=1)
        place = strip[_GAP : _GAP + ink.shape[0], left : left + ink.shape[1]]
        place[ink[:, : place.shape[1]]] = colour
        left += ink.shape[1] + _GLYPH_SCALE
