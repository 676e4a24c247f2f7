"""The page on modalities: its example runs, its recipe is one, its options and numbers are the code's."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import yaml

from flopwise.data.media import MEDIA
from flopwise.data.modalities import NAMES, modality
from flopwise.data.modalities.calibration import CalibrationOptions, entropy

PAGE = Path(__file__).parents[3] / "docs" / "modalities.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_example_runs():
    done = doctest.testfile(str(PAGE), module_relative=False)
    assert (done.attempted, done.failed) == (3, 0)


def test_the_recipe_is_one():
    from flopwise.data.build import vocab_size
    from flopwise.launch.recipe import load

    recipe = load(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[0]))
    # Frame marker and 256 patches, 64 levels, 6 channels of 64 bins; two ids end documents and pad.
    assert vocab_size(recipe.data.model_dump()) == 2 + 257 + 64 + 6 * 64


def test_every_option_and_corpus_is_on_the_page():
    learned = {"codebooks", "edges", "centres", "labels"}
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    for name in NAMES:
        options = set(modality(name).kind.model_fields) - learned
        assert options <= named, options - named
    assert set(re.findall(r"`([a-z-]+)`", TEXT)) >= set(MEDIA)


def test_entropies():
    exact = entropy(CalibrationOptions())
    for value in (exact.rate, exact.second, exact.first, exact.window(128)):
        assert f"{value:.6f}" in TEXT


@pytest.mark.parametrize("name", NAMES)
def test_every_modality_has_a_section_and_its_vocabulary_is_where_the_table_says(name):
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.count("|") == 10]
    ours = [row for row in rows if row[0] in MEDIA and MEDIA[row[0]].modality == name]
    assert ours
    for corpus, shown, *_, size, _, _, _ in ours:
        options = {} if shown == "defaults" else yaml.safe_load("{" + shown + "}")
        assert modality(name).vocab_size(options, corpus) == int(size.replace(",", ""))
