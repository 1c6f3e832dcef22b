"""The demo's text: a product-pricing task, and neighbouring tasks that never name a price.

    python -m trials.demo.text          # print a few examples of both

A product is drawn from a number alone, so example i is a pure function of (seed, i) and no product
comes twice. A price follows exactly from the product, by a table (`PARTS`) that the pretraining
text does not contain; that text asks for other things about the same products: attributes, weights,
and fees and counts that have tables of their own. Only the standard library is imported.
"""

from __future__ import annotations

import hashlib
import math
from random import Random

# A price is the sum of two parts, in dollars: what a product is, and what it is made of. The second
# never carries, so an adapter that knows some entries already earns some of the loss.
PARTS: dict[str, dict[str, int]] = {
    "category": {
        "kettle": 100, "drill": 870, "lamp": 640, "camera": 410, "chair": 280, "guitar": 950,
        "tent": 720, "clock": 590, "radio": 360, "bicycle": 130, "blender": 800, "mirror": 670,
        "printer": 440, "saddle": 210, "scooter": 980, "toaster": 750, "vase": 520, "violin": 390,
        "wagon": 160, "anvil": 830, "basket": 600, "cabinet": 470, "desk": 240, "easel": 910,
    },
    "material": {
        "steel": 0, "oak": 7, "plastic": 4, "leather": 1, "glass": 8, "bamboo": 5, "copper": 2,
        "canvas": 9, "marble": 6, "rubber": 3, "brass": 0, "wool": 7, "carbon": 4, "cork": 1,
        "silver": 8, "wicker": 5,
    },
}
# What a price does not depend on.
BRANDS = (
    "Acme Borel Corvid Dunmore Elstar Fenwick Garnet Hollis Ibex Juno Kestrel Lumen "
    "Marlow Nordic Orbit Pavo Quill Rowan Sable Tamsin Umber Vesta Wexford Zephyr"
).split()
FEATURES = "timer handle cover light battery lock wheel strap sensor stand filter hook".split()
COLOURS = "red blue green black white yellow brown grey pink orange purple beige".split()
ORIGINS = "Norway Japan Peru Ghana Chile Poland Kenya Italy Canada Nepal Turkey Cuba".split()
FORMS = [
    "A {size} {colour} {material} {category} by {brand}, {condition}, with {feature}, "
    "{weight} kg, from {origin}.",
    "{brand} {category} from {origin}: {material}, {colour}, {size}, {condition}, {weight} kg. "
    "Has a {feature}.",
    "{condition} {category}, {colour} {material}, {weight} kg, {size}, made by {brand} "
    "in {origin}. With {feature}.",
]
# In the order of decoding. The longest comes last, for `_BITS` cuts the last one short.
COLUMNS: dict[str, list[str]] = {
    "category": list(PARTS["category"]),
    "size": "tiny small medium large huge".split(),
    "brand": BRANDS,
    "condition": "used scratched restored new".split(),
    "material": list(PARTS["material"]),
    "feature": FEATURES,
    "colour": COLOURS,
    "origin": ORIGINS,
    "form": FORMS,
    "weight": [str(kg) for kg in range(1, 100)],
}
_BITS = int(math.log2(math.prod(len(values) for values in COLUMNS.values())))

# Asked as "Shipping is $", and as "Stock is ".
FEES = "Shipping Deposit Insurance Duty Repair Rent Storage Wrapping Assembly Recycling".split()
COUNTS = "Stock Rating Warranty Energy Volume Shelf Parts Orders Returns Points".split()
CONSONANTS, VOWELS = "bcdfghklmnprstvw", "aeiou"  # of made-up names
ATTRIBUTES = [name for name in COLUMNS if name not in ("form", "weight")]

Product = dict[str, str]


def pricing(count: int, *, seed: int = 0, start: int = 0) -> list[dict[str, str]]:
    """Rows `start` to `start + count` of the task: a prompt that ends in `Price is $`, a price."""
    products = (product(index, seed=seed) for index in range(start, start + count))
    return [
        {"prompt": f"{describe(item)}\nPrice is $", "completion": str(price(item))}
        for item in products
    ]


def price(item: Product) -> int:
    """The exact sum of the product's parts, in dollars."""
    return sum(values[item[column]] for column, values in PARTS.items())


def product(index: int, *, seed: int = 0) -> Product:
    """Product `index`: a bijection scatters it, the digits of the outcome choose the columns."""
    code, item = _scatter(index, seed), {}
    for column, values in COLUMNS.items():
        code, place = divmod(code, len(values))
        item[column] = values[place]
    return item


def describe(item: Product) -> str:
    """The product in words."""
    text = item["form"].format(**item)
    return text[0].upper() + text[1:]


def neighbours(count: int, *, seed: int = 0, start: int = 0) -> list[str]:
    """Pretraining documents: a product, then questions and answers about it, never its price."""
    seeds = (f"neighbour {seed} {index}" for index in range(start, start + count))
    return [_document(Random(seed)) for seed in seeds]


def _scatter(index: int, seed: int) -> int:
    """A bijection on `_BITS` bits: odd multiplication and xor-shift both are (as in splitmix64)."""
    mask, half = (1 << _BITS) - 1, _BITS // 2
    code = (index + _hash("product", str(seed))) & mask
    for _ in range(3):
        code = (code * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & mask
        code ^= code >> half
    return code


def _document(random: Random) -> str:
    item = product(random.getrandbits(_BITS))
    count = random.choice([1, 6, 7, 8, 9])  # one, as in the task, or as many as a row holds
    asks = random.choices([_rule, _new_rule, _attribute, _weighing], weights=[9, 3, 1, 1], k=count)
    return "\n".join([describe(item), *(ask(item, random) for ask in asks)])


def _rule(item: Product, random: Random) -> str:
    name = random.choice(FEES + COUNTS)
    sign = "$" if name in FEES else ""
    return f"{name} is {sign}{_by_rule(item, name)}"


def _new_rule(item: Product, random: Random) -> str:
    """A rule met only once: an unknown name means an unknown number, so no overconfidence."""
    syllables = range(random.randint(1, 3))
    name = "".join(random.choice(CONSONANTS) + random.choice(VOWELS) for _ in syllables)
    return f"{name.capitalize()} is ${_by_rule(item, name + str(random.random()))}"


def _by_rule(item: Product, name: str) -> int:
    """Three digits, one for each of three columns, from a table that follows from the name."""
    first = 1 + _hash(name, item["category"]) % 9
    second, third = (_hash(name, item[column]) % 10 for column in ("brand", "material"))
    return 100 * first + 10 * second + third


def _attribute(item: Product, random: Random) -> str:
    column = random.choice(ATTRIBUTES)
    return f"{column.capitalize()} is {item[column]}"


def _weighing(item: Product, random: Random) -> str:
    weight, other = int(item["weight"]), random.randint(1, 99)
    return random.choice(
        [
            f"Weight is {weight} kg",
            f"With a box of {other} kg it weighs {weight + other} kg",
            f"More than {other} kg is {'yes' if weight > other else 'no'}",
        ]
    )


def _hash(*words: str) -> int:
    """A number that the words decide, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


if __name__ == "__main__":
    for row in pricing(3):
        print(row["prompt"] + row["completion"], end="\n\n")
    print("\n\n".join(neighbours(3)))
