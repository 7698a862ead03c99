"""Pages of documentation: links lead somewhere, tables are what their commands print."""

import re
from pathlib import Path
from typing import get_args

import pytest

from analysis.figures import FIGURES
from analysis.study_tables import TABLES
from msvit.models import list_models
from msvit.models.__main__ import zoo_table
from msvit.neuron_kinds import NeuronName
from msvit.recipes import list_recipes
from msvit.records.energy import ENERGY_MODELS
from studies.grids import load_study

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / name for name in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), "results/README.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    missing = [link for link in inside if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"(docs/{page.name})" for page in ROOT.glob("docs/*.md")]
    assert pages
    assert not [page for page in pages if page not in readme]


def test_the_zoo_page_has_the_rows_that_the_command_prints():
    rows = re.findall(r"^\| `.*$", (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), re.M)
    assert [re.findall(r"`(.*?)`", row)[0] for row in rows] == list_models()
    small = {f"`{name}`" for name in list_models("*cifar10")}
    printed = [row for row in zoo_table("*cifar10").splitlines() if row.startswith("| `")]
    assert printed == [row for row in rows if row.split()[1] in small]


def first_column(page: str, heading: str) -> list[str]:
    """What is called by its name in the first column of the table below a line that begins so."""
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index(f"\n{heading}") :].partition("\n\n")[0]
    return [re.findall(r"`([\w<>…]+)`", row.split("|")[1])[0] for row in table.splitlines()[3:]]


def test_the_readme_shows_the_table_that_its_study_has_left():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    table = (ROOT / "results/reference/scales/table.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in table if line.startswith("|")]
    assert rows
    assert [line for line in readme if line in rows] == rows


def test_pages_name_all_tables_figures_and_energy_models():
    assert set(first_column("docs/statistics.md", "| file in")) == set(TABLES)
    families = [name.partition("_<")[0] for name in first_column("results/README.md", "| figure")]
    assert families == list(FIGURES)
    assert first_column("docs/energy.md", "| name | charges") == list(ENERGY_MODELS)


def test_pages_name_all_neurons_and_recipes():
    zoo = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert not [name for name in get_args(NeuronName) if f"`{name}`" not in zoo]
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    families = {name.partition("-")[0] for name in list_recipes()}
    assert not [name for name in families if f"`{name}" not in page]


def test_the_grid_in_the_documentation_is_one(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    study = load_study(str(tmp_path / "mine.yaml"))
    assert len(study.cells) == 18
    groups = {entry.group for entry in study.cells}
    assert {"msvit neuron=lif", "qkformer neuron=psn"} <= groups
