"""Pages of documentation: links lead somewhere, tables are what their commands print."""

import re
from pathlib import Path

import pytest

from msvit.models import list_models
from msvit.models.__main__ import zoo_table

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
