"""The embedded default: the pricing task's promises, the base's text and the base itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trials.demo import text

ASSETS = Path(text.__file__).parent.parent / "assets" / "demo"
KETTLE = {  # spelled out, so that a change of the rule is noticed
    "category": "kettle", "material": "glass", "brand": "Acme", "size": "small", "colour": "red",
    "condition": "new", "feature": "timer", "origin": "Peru", "weight": "3", "form": text.FORMS[1],
}


def test_an_example_follows_from_seed_and_number() -> None:
    rows = text.pricing(50, seed=3)
    assert rows == text.pricing(50, seed=3)
    assert rows[20:30] == text.pricing(10, seed=3, start=20)
    assert rows != text.pricing(50, seed=4)


def test_the_first_examples_stay_what_they_were() -> None:
    assert text.pricing(2) == [
        {
            "prompt": "Marlow blender from Cuba: leather, black, large, new, 37 kg. Has a sensor.\n"
            "Price is $",
            "completion": "801",
        },
        {
            "prompt": "A medium black cork lamp by Tamsin, new, with stand, 58 kg, from Peru.\n"
            "Price is $",
            "completion": "641",
        },
    ]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_no_product_comes_twice(seed: int) -> None:
    prompts = {row["prompt"] for row in text.pricing(20_000, seed=seed)}
    assert len(prompts) == 20_000


def test_neighbouring_numbers_give_unrelated_products() -> None:
    products = [text.product(number) for number in range(4000)]
    for column, values in text.COLUMNS.items():
        same = sum(a[column] == b[column] for a, b in zip(products, products[1:], strict=False))
        assert same / 4000 < 2 / len(values), column
        assert {item[column] for item in products} >= set(values[:70]), column


def test_the_price_of_a_product() -> None:
    assert text.describe(KETTLE) == (
        "Acme kettle from Peru: glass, red, small, new, 3 kg. Has a timer."
    )
    assert text.price(KETTLE) == 108


def test_a_price_follows_from_the_words_alone() -> None:
    for row in text.pricing(2000):
        words = re.findall(r"[A-Za-z]+", row["prompt"].split("\n")[0].lower())
        amounts = [values[w] for values in text.PARTS.values() for w in words if w in values]
        assert len(amounts) == len(text.PARTS)
        assert row["completion"] == str(sum(amounts))


def test_a_price_has_three_digits_and_every_digit_varies() -> None:
    prices = [row["completion"] for row in text.pricing(2000)]
    assert {len(price) for price in prices} == {3}
    assert [len({price[place] for price in prices}) for place in range(3)] == [9, 10, 10]


def test_the_text_of_the_base_never_names_a_price() -> None:
    documents = text.neighbours(3000)
    assert documents == text.neighbours(3000)
    assert not any("price" in document.lower() for document in documents)
    assert len(set(documents)) == 3000


def test_the_text_of_the_base_asks_for_attributes_weights_and_fees() -> None:
    asked = "\n".join(text.neighbours(300))
    for form in (r"Shipping is \$\d{3}", r"Stock is \d{3}", "Material is [a-z]", "More than"):
        assert re.search(form, asked), form
    assert all(f"{name} is" in asked for name in text.FEES + text.COUNTS)


def test_the_generator_imports_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import trials.demo.text;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names - {'trials'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_assets_are_small_and_say_where_they_come_from() -> None:
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) < 10_000_000
    note = (ASSETS / "README.md").read_text()
    assert "python -m trials.demo.pretrain --device cuda --seed 0" in note
    assert "Apache-2.0" in note


def test_the_base_loads_and_fits_nf4_blocks() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ASSETS)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 3_279_104
    shapes = [m.weight.shape for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(size % 64 == 0 for shape in shapes for size in shape)


def test_the_tokenizer_reads_prices_digit_by_digit_and_any_text() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    row = text.pricing(1)[0]
    prompt, both = tokenizer([row["prompt"], row["prompt"] + row["completion"]])["input_ids"]
    assert both[: len(prompt)] == prompt
    assert [tokenizer.decode(token) for token in both[len(prompt) :]] == list(row["completion"])
    assert len(both) + 1 <= 48
    strange = "naïve → 多 2024\t{code}"
    assert tokenizer.decode(tokenizer(strange)["input_ids"], skip_special_tokens=True) == strange
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.chat_template is None


def test_the_base_knows_its_fees_and_no_price() -> None:
    """The base answers what it was trained on, and is no better than a guess at prices."""
    items = [text.product(number) for number in range(10**6, 10**6 + 64)]
    fees = [f"{text.describe(i)}\nShipping is ${text._by_rule(i, 'Shipping')}" for i in items]
    prices = [f"{text.describe(item)}\nPrice is ${text.price(item)}" for item in items]
    assert _right_digits(fees) > 0.95
    assert _right_digits(prices) < 0.3


def _right_digits(lines: list[str]) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(ASSETS, dtype=torch.float32)
    batch = tokenizer(lines, padding=True, return_tensors="pt")
    with torch.no_grad():
        guesses = model(**batch).logits[:, -4:-1].argmax(-1)
    return float((guesses == batch["input_ids"][:, -3:]).float().mean())


def test_the_tokenizer_is_rebuilt_by_its_script() -> None:
    from trials.demo.pretrain import train_tokenizer

    made = json.loads(train_tokenizer(0).backend_tokenizer.to_str())
    assert made["model"] == json.loads((ASSETS / "tokenizer.json").read_text())["model"]


def test_pretraining_twice_gives_the_same_base(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from trials.demo.pretrain import main

    few = ["--steps", "2", "--batch", "4", "--documents", "40", "--out"]
    for folder in ("one", "two"):
        main([*few, str(tmp_path / folder)])
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {file.name for file in ASSETS.iterdir()}
