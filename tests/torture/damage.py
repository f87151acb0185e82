"""Random damage to bytes and to JSON; the same seed does the same damage.

Owns what can happen to a file: flips, cuts, inserts, removals, swaps, reorders, splices, and edits
of single JSON values. Knows nothing of any format.
"""

import base64
import copy
import json

BLOCK = 512

STRANGE = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    1e308,
    1 << 53,
    (1 << 53) + 1,
    1 << 64,
    10**400,
    "",
    "x",
    ".",
    "..",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a\0b",
    "\ud800",
    "A" * 64,
    "0" * 64,
    "f" * 64,
    "=",
    "AA==",
    "AB==",
    [],
    {},
    ["x"],
    {"x": "x"},
    [[]] * 3,
)


def flip_bit(rng, data, other):
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)


def flip_bytes(rng, data, other):
    start = rng.randrange(len(data))
    for place in range(start, min(len(data), start + rng.randrange(1, 64))):
        data[place] = rng.randrange(256)


def scatter(rng, data, other):
    for _ in range(rng.randrange(2, 40)):
        flip_bit(rng, data, other)


def zeros(rng, data, other):
    start = rng.randrange(len(data))
    size = min(len(data) - start, rng.randrange(1, 4 * BLOCK))
    data[start : start + size] = bytes(size)


def cut_end(rng, data, other):
    del data[rng.randrange(len(data)) :]


def cut_front(rng, data, other):
    del data[: rng.randrange(1, len(data) + 1)]


def remove(rng, data, other):
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 2 * BLOCK)]


def insert(rng, data, other):
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randrange(1, 64))


def insert_space(rng, data, other):
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice([b" ", b"\n", b"\t", b"\0", b"\xef\xbb\xbf", b","])


def append(rng, data, other):
    data += rng.randbytes(rng.randrange(1, 2 * BLOCK))


def repeat(rng, data, other):
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 2 * BLOCK)]
    data[start:start] = piece


def swap(rng, data, other):
    size = rng.choice([1, 8, 64, BLOCK])
    one, two = (rng.randrange(len(data)) // size * size for _ in range(2))
    one, two = min(one, two), max(one, two)
    first, second = data[one : one + size], data[two : two + size]
    data[two : two + size] = first
    data[one : one + size] = second


def reorder(rng, data, other):
    size = rng.choice([16, BLOCK, max(1, len(data) // 4)])
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    rng.shuffle(pieces)
    data[:] = b"".join(pieces)


def splice(rng, data, other):
    """The beginning of one genuine file and the end of another."""
    place = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        place = place // BLOCK * BLOCK
    data[place:] = other[place:]


def graft(rng, data, other):
    """A piece of another genuine file, at the same place."""
    start = rng.randrange(len(data))
    stop = start + rng.randrange(1, 4 * BLOCK)
    data[start:stop] = other[start:stop]


def exchange(rng, data, other):
    data[:] = other


def vanish(rng, data, other):
    del data[:]


BYTE_KINDS = (
    flip_bit,
    flip_bytes,
    scatter,
    zeros,
    cut_end,
    cut_front,
    remove,
    insert,
    insert_space,
    append,
    repeat,
    swap,
    reorder,
    splice,
    graft,
    exchange,
    vanish,
)


def damage(rng, data, other=b""):
    """`data` after one to three kinds of damage, and their names; `other` is a genuine file too."""
    result, names = bytearray(data), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(BYTE_KINDS)
        if result:
            kind(rng, result, other)
            names.append(kind.__name__)
    return bytes(result), "+".join(names)


def nodes(value, path=()):
    """Every path into a JSON value, containers included."""
    yield path
    if isinstance(value, (dict, list)):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nodes(child, (*path, name))


def at(value, path):
    for name in path:
        value = value[name]
    return value


def replaced(value, path, new):
    """A copy of a JSON value with another value at `path`."""
    if not path:
        return new
    result = copy.deepcopy(value)
    at(result, path[:-1])[path[-1]] = new
    return result


def edit_json(rng, value, paths=None):
    """A copy of a JSON value with one node edited, and what was done to which."""
    path = rng.choice(paths or list(nodes(value)))
    old = at(value, path)
    choices = [_strange, _wrap]
    if isinstance(old, str):
        choices += [_edit_text] * 4
    if isinstance(old, int) and not isinstance(old, bool):
        choices += [_edit_number] * 3
    if isinstance(old, (list, dict)):
        choices += [_edit_children] * 4
    how = rng.choice(choices)
    return replaced(value, path, how(rng, old)), f"{how.__name__} {_shown(path)}"


def _shown(path):
    return "/" + "/".join(map(str, path))


def _strange(rng, old):
    return rng.choice(STRANGE)


def _wrap(rng, old):
    return rng.choice([[old], {"a": old}, [old, old]])


def _edit_number(rng, old):
    whole = float(old) if abs(old) < 1 << 1000 else old
    return rng.choice([old + 1, old - 1, -old, 2 * old, old // 2, old + (1 << 32), whole])


def _edit_text(rng, old):
    if not old:
        return " "
    place = rng.randrange(len(old))
    other = rng.choice("0123456789abcdefABCDEF+/=.\\\0\u00e9 ")
    return rng.choice(
        [
            old[:place] + other + old[place + 1 :],
            old[:place] + other + old[place:],
            old[:place] + old[place + 1 :],
            old[:place],
            old[place:],
            old[::-1],
            old.upper(),
            old.swapcase(),
            old + old,
            " " + old,
            old + "\n",
            _edit_base64(rng, old),
        ]
    )


def _edit_base64(rng, text):
    try:
        data, _ = damage(rng, base64.b64decode(text, validate=True))
    except ValueError:
        return text + "="
    return base64.b64encode(data).decode("ascii")


def _edit_children(rng, old):
    if isinstance(old, dict):
        items = list(old.items())
        if not items:
            return {"extra": 1}
        name, value = rng.choice(items)
        rest = {key: item for key, item in items if key != name}
        return rng.choice([rest, {**old, "extra": value}, {**rest, name.upper(): value}])
    items = list(old)
    if not items:
        return [rng.choice(STRANGE)]
    place = rng.randrange(len(items))
    shuffled = rng.sample(items, len(items))
    return rng.choice(
        [items[:place] + items[place + 1 :], [*items, items[place]], shuffled, items[:place]]
    )


def spell(rng, value):
    """JSON text of a value; now and then a key twice, or white space, or nested far too deep."""
    text = json.dumps(value, separators=rng.choice([(",", ":"), (", ", ": ")]))
    odd = rng.random()
    if odd < 0.05:
        text = text.replace('":', '":null,"', 1).replace('null,"', 'null,"x":', 1)
    elif odd < 0.08:
        depth = rng.choice([100, 900, 1100, 100_000])
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    elif odd < 0.1:
        text = rng.choice(["\ufeff", " ", "\n"]) + text
    return text.encode("utf-8", "surrogatepass")
