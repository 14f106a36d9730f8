"""What YAML drops or turns into another number in silence is refused or stays as written."""

import pytest
from pydantic import Field

from butterfly_sdm.core.settings import Section, load_settings
from butterfly_sdm.errors import ConfigError


class Inner(Section):
    epochs: int = 1


class Example(Section):
    inner: Inner = Inner()
    seed: int = Field(0, ge=0)
    place: str = ""
    rate: float = 0.0


def load(tmp_path, text, *overrides):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return load_settings(Example, path, overrides)[0]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("seed: 3\nplace: x\nseed: 50\n", (3, 1)),
        ("inner:\n  epochs: 3\n  epochs: 50\n", (3, 2)),
        ("inner: {epochs: 3, 'epochs': 50}\n", (1, 1)),
        ("inner: {epochs: 3}\nseed: 1\ninner: {epochs: 50}\n", (3, 1)),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path, text, lines):
    words = rf"at line {lines[0]}: the key '\w+' is given a second time, first at line {lines[1]}"
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)


def test_a_merged_mapping_may_be_overruled(tmp_path):
    assert load(tmp_path, "inner:\n  <<: {epochs: 3}\n  epochs: 50\n").inner.epochs == 50


@pytest.mark.parametrize("text", ["190:20:30", "1:30", "1:30.5", "-12:05:59"])
def test_colons_make_no_number(tmp_path, text):
    assert load(tmp_path, f"place: {text}\n").place == text
    with pytest.raises(ConfigError, match="seed"):
        load(tmp_path, f"seed: {text}\n")


def test_a_leading_zero_makes_no_octal_number(tmp_path):
    assert load(tmp_path, "place: 010\n").place == "010"  # 8 in YAML 1.1
    with pytest.raises(ConfigError, match='seed = "010"'):
        load(tmp_path, "seed: 010\n")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("-1.5e3", -1500), (".5", 0.5), ("1_000.", 1000), ("2", 2)]
)
def test_numbers_are_numbers(tmp_path, text, value):
    assert load(tmp_path, f"rate: {text}\n").rate == value


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "9" * 5000, "0x" + "f" * 17, str(1 << 63)])
def test_a_number_beyond_63_bits_is_one_sentence(tmp_path, text):
    with pytest.raises(ConfigError):
        load(tmp_path, f"seed: {text}\n")
    with pytest.raises(ConfigError):
        load(tmp_path, "place: x\n", f"seed={text}")
    with pytest.raises(ConfigError, match="63 are the most"):
        load_settings(Example, {"seed": 1 << 64})
    assert load(tmp_path, f"seed: {(1 << 63) - 1}\n").seed == (1 << 63) - 1
