"""A report as one HTML file: what it says, and what a browser makes of it."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from analysis.drawn import Drawn
from analysis.figures import accuracy_energy
from analysis.page.answer import answer
from analysis.page.content import Part, sort_key
from analysis.page.inside import insides_of
from analysis.page.pictures import pictures_of
from analysis.page.render import page, write_page
from analysis.page.search import search_part
from analysis.page.study import commands, places, study_part
from analysis.report import main, write_report
from analysis.search import collect_search
from analysis.search_figures import draw_search_figures
from analysis.view import USUAL, View
from msvit.records.energy_choice import EnergyChoice
from msvit.records.measures import mean_measures
from msvit.records.store import read_study, search_folder, write_search, write_study
from studies.hpo import manifest
from studies.search.ledger import Ledger
from studies.search.space import load_space
from tests.chromium import Chromium, find_chromium
from tests.results_folder import Results, make_cell, make_record

pytestmark = pytest.mark.slow  # figures are drawn

EVIL = '<script>document.title="taken"</script> & <img src=x onerror="throw 1">'
"""What a page would show as itself, and a careless one would run."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Three configurations: three seeds, three seeds, one failed and one missing. Read only."""
    found = Results(tmp_path_factory.mktemp("results"))
    for group, scales, accuracies in (
        ("msvit scales=1", [1], (0.95, 0.96, 0.958)),
        ("msvit scales=1,3", [1, 3], (0.98, 0.992, 0.986)),
    ):
        for seed, accuracy in enumerate(accuracies):
            cell = make_cell({"name": "msvit", "scales": scales}, seed)
            energy = 4e-3 + 1e-3 * len(scales) + 1e-4 * seed
            found.add(group, cell, make_record(cell, accuracy, energy, layers=3))
    failed = found.add(EVIL, make_cell({"name": "spikformer"}, 0), f"loss is nan {EVIL}")
    found.add(EVIL, make_cell({"name": "spikformer"}, 1), None)
    lines = [f"line {number} {EVIL}" for number in range(40)]
    log = found.folder / "cells" / failed.id / "log.txt"
    log.write_text("\n".join(lines) + "\n" + "x" * 5000 + "\n", encoding="utf-8")
    for entry in (found.entries[0], found.entries[3]):
        look_inside(found.folder / "cells" / entry["id"] / "inside")
    return found


def look_inside(folder):
    """Two pictures and a sentence, as `analysis/inside.py` writes them."""
    folder.mkdir()
    told = [
        {"name": name, "title": f"msvit: {name} {EVIL}", "text": f"{name} {EVIL}\nand how"}
        for name in ("votes", "spikes")
    ]
    for figure in told:
        noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{figure['name']}.png")
    manifest = {"said": [f"Scale 1 votes {EVIL}"], "figures": told}
    (folder / "inside.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def drawn(results) -> Drawn:
    return Drawn(results.study(), View("msvit scales=1"))


@pytest.fixture(scope="module")
def part(drawn) -> Part:
    return study_part(drawn)


@pytest.fixture
def one_figure(monkeypatch):
    """Only the first figure is drawn: all of them take a while."""
    monkeypatch.setattr("analysis.figures.FIGURES", {"accuracy_energy": accuracy_energy})


# What it says


def test_the_answer_is_what_the_statistics_say(drawn):
    told = " ".join(answer(drawn.study, drawn.view))
    assert "Mean test accuracy of msvit scales=1,3: 98.60 % (95% interval" in told
    assert "More accurate than msvit scales=1: msvit scales=1,3." in told
    assert "This is not final: 2 of 8 cells have no result yet." in told
    first = drawn.tables["table"].notes
    assert answer(drawn.study, USUAL)[0] in first  # one wording for the page and the table


def test_without_a_result_nothing_is_said_and_the_page_tells_why(tmp_path, one_figure):
    results = Results(tmp_path)
    results.add("msvit", make_cell({"name": "msvit"}, 0), "out of luck")
    folder = write_report(Drawn(results.study()), formats=("html",))
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Nothing can be said yet: no cell is finished." in text
    assert "TrainingDiverged: out of luck" in text


def test_cells_show_what_they_have_of_their_own_and_those_without_a_result_come_first(part):
    assert [run.state for run in part.runs] == ["failed", "missing", *["finished"] * 6]
    failed, missing, first = part.runs[:3]
    assert "loss is nan" in failed.problem
    assert failed.cut
    assert len(failed.log.splitlines()) <= 15
    assert "line 39" in failed.log
    assert missing.problem == "not trained yet"
    assert not missing.settings
    assert dict(first.settings) == {"model": "msvit", "model.scales": "1"}
    assert first.result == "95.00 %"
    assert dict(part.shared)["training.epochs"] == "2"
    assert "model.scales" not in dict(part.shared)


def test_places_are_told_once_and_then_what_differs(results):
    study = results.study()
    cells = study.cells.assign(**{"environment.processor": ["Zen"] * 2 + ["Xeon"] * 6})
    found = places(dataclasses.replace(study, cells=cells))
    assert found[0] == (6, (("precision", "float32"), ("python", "3.11")))
    assert found[1:] == [(2, (("processor", "Zen"),)), (4, (("processor", "Xeon"),))]


def test_commands_make_the_same_study_again(results):
    study = results.study()
    cells = study.cells[study.cells["group"] != EVIL].assign(**{"environment.commit": "abc123"})
    theirs = dataclasses.replace(
        study,
        cells=cells,
        grid_file="studies/grids/scales.yaml",
        overrides=("training.epochs=2", "model.scales=[1, 3]"),
    )
    assert commands(theirs, View("msvit scales=1")) == [
        "git checkout abc123",
        "python studies/run.py --grid scales --set training.epochs=2 "
        "--set 'model.scales=[1, 3]' --seeds 3 --baseline 'msvit scales=1'",
        "python analysis/report.py --grid scales --baseline 'msvit scales=1'",
    ]
    two = View(energy=EnergyChoice(("sop_spikformer", "exact_synops")))
    assert all("--energy sop_spikformer,exact_synops" in told for told in commands(theirs, two)[1:])
    dirty = theirs.cells.assign(**{"environment.commit": "abc123-dirty"})
    own = dataclasses.replace(theirs, cells=dirty, grid_file="my grids/a.yaml", overrides=())
    assert commands(own, USUAL)[0].startswith("python studies/run.py --grid 'my grids/a.yaml'")


def test_fields_sort_by_their_numbers():
    texts = ["+1.5", "−0.3", "<0.001", "2/3", "—", "", "msvit", "12"]
    assert [sort_key(text) for text in texts] == [1.5, -0.3, 0.001, 2.0, "", "", "msvit", 12.0]


def test_every_figure_has_the_numbers_of_its_own_configurations(part):
    data = {picture.name: picture.csv for picture in part.pictures}
    assert {"accuracy_energy", "accuracy_scales", "learning", "differences"} <= data.keys()
    assert all(data.values())
    assert re.search(r'\n"msvit scales=1,3",0\.986,', data["accuracy_energy"])
    assert data["differences"].count("\n") == 3  # two configurations beside the baseline


def test_what_there_is_no_room_for_is_named(drawn):
    pictures, left_out = pictures_of(drawn.figures, {}, share=0.03)
    assert pictures
    assert left_out
    assert [p.name for p in pictures] + left_out == list(drawn.figures)


def test_a_page_is_the_same_for_the_same_records_and_small(results, part, one_figure):
    pages = [page([study_part(Drawn(results.study()))]) for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(page([part])) < 1_000_000


def test_one_command_makes_a_page_of_several(results, tmp_path, one_figure, capsys):
    write_study(results.folder, read_study(results.folder, "scales") | {"name": "twin"})
    given = ["--grid", "scales", "--grid", "twin", "--results", str(results.folder)]
    given += ["--out", str(tmp_path / "out"), "--format", "html"]
    assert main(given) == 0
    path = tmp_path / "out" / "report.html"
    assert capsys.readouterr().out.endswith(f"page of all: {path}\n")
    text = path.read_text(encoding="utf-8")
    assert 'id="study-scales"' in text
    assert 'id="study-twin"' in text
    assert main([*given, "--baseline", "msvit scales=2"]) == 2
    assert "--baseline msvit scales=2: no such configuration" in capsys.readouterr().err


def test_cells_that_were_looked_into_show_what_was_seen(results, part):
    assert [inside.label for inside in part.insides] == [
        "msvit scales=1 seed 0",
        "msvit scales=1,3 seed 0",
    ]
    for inside in part.insides:
        assert inside.said == (f"Scale 1 votes {EVIL}",)
        assert [picture.title for picture in inside.pictures] == [f"votes {EVIL}", f"spikes {EVIL}"]
    assert part.insides_left_out == ()


def test_where_room_is_scarce_every_cell_shows_its_first_picture_before_any_its_second(results):
    study = results.study()
    whole, _, _ = insides_of(study, 1e6)
    first = sum(len(inside.pictures[0].source) for inside in whole)
    found, left_out, warnings = insides_of(study, first + 10)
    assert [[p.title.split()[0] for p in inside.pictures] for inside in found] == [["votes"]] * 2
    assert left_out == ["msvit scales=1 seed 0: spikes", "msvit scales=1,3 seed 0: spikes"]
    assert warnings == []


def test_what_is_broken_of_a_look_inside_is_said(tmp_path):
    results = Results(tmp_path)
    cells = [make_cell({"name": "msvit"}, seed) for seed in (0, 1)]
    folders = []
    for cell in cells:
        results.add("msvit", cell, make_record(cell, 0.9, 1e-3))
        folders.append(results.folder / "cells" / cell.id / "inside")
        look_inside(folders[-1])
    (folders[0] / "inside.json").write_text("{")
    (folders[1] / "votes.png").write_bytes(b"no picture")
    found, left_out, warnings = insides_of(results.study(), 1e6)
    assert [[p.title.split()[0] for p in inside.pictures] for inside in found] == [["spikes"]]
    assert left_out == []
    assert len(warnings) == 2
    assert f"{folders[0] / 'inside.json'}: not readable" in warnings[0]
    assert "votes.png" in warnings[1]


# What a browser makes of it

SPACE = """
question: Does it search?
base:
  model: {name: msvit, dim: 16, heads: 2, depths: [1, 1], widths: [0.5, 1.0], timesteps: 1}
  data: {name: digits, image_size: 8}
  training: {epochs: 1, batch_size: 16, warmup_epochs: 0}
parameters: {training.lr: {float: [1.0e-4, 3.0e-2], log: true}}
objectives: {accuracy: maximize, energy_mj: minimize}
trials: 3
"""


def search(results, tmp_path):
    """A search of three trials, of which the second failed."""
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    space = load_space(str(path))
    ledger = Ledger.open(space, str(search_folder(results.folder, "mine") / "study.journal"), 0)
    while proposal := ledger.propose():
        if proposal.number == 1:
            ledger.fail(proposal.number, EVIL)
            continue
        records = [make_record(c, 0.9, 1e-3 * (1 + proposal.number)) for c in proposal.cells]
        ledger.complete(proposal.number, mean_measures(records))
    write_search(results.folder, manifest(space, "study.journal"))
    return collect_search(results.folder, "mine")


@pytest.fixture(scope="module")
def browser(results, part, tmp_path_factory):
    """A Chromium that shows a page of a study, the same once more, and a search."""
    if (path := find_chromium()) is None:
        pytest.skip("no Chromium or Chrome is installed here; Debian: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    searched = search(results, folder)
    other = search_part(searched, draw_search_figures(searched), USUAL.energy)
    twin = dataclasses.replace(part, name="twin")
    browser = Chromium(path, folder / "profile")
    browser.resize(1280)
    browser.open(write_page([part, twin, other], folder))
    yield browser
    browser.close()


def test_a_browser_has_nothing_to_complain_of(browser):
    assert browser.complaints == []
    assert browser.evaluate("document.title") == "scales · twin · mine"
    assert browser.evaluate("document.querySelectorAll('article').length") == 3
    assert EVIL in browser.evaluate("document.querySelector('.run.failed .problem').textContent")
    assert EVIL in browser.evaluate("document.querySelector('#search-mine .problem').textContent")


def test_a_look_inside_opens_and_is_text_to_the_page(browser):
    looks = "[...document.querySelectorAll('#study-scales-inside details.inside')]"
    assert browser.evaluate(f"{looks}.map(d => d.open)") == [True, False]
    assert EVIL in browser.evaluate(f"{looks}[0].querySelector('p').textContent")
    assert browser.evaluate("document.querySelector('a[href=\"#study-scales-inside\"]') != null")


def test_all_images_load(browser):
    images = "[...document.querySelectorAll('figure img')]"
    assert browser.evaluate(f"{images}.length") > 15
    broken = f"{images}.filter(i => !i.complete || i.naturalWidth < 100).map(i => i.alt)"
    assert browser.evaluate(broken) == []
    assert browser.evaluate(f"{images}.filter(i => !i.alt).length") == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser, width):
    browser.resize(width)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    wide = """[...document.querySelectorAll('body *')]
        .filter(e => !e.closest('.wide, pre, dialog'))
        .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert browser.evaluate(wide) == []
    assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    browser.resize(1280)


def column(browser, number):
    cells = f"table.tBodies[0].querySelectorAll('td:nth-child({number})')"
    return browser.evaluate(f"[...{cells}].map(c => c.textContent.trim())")


def test_a_heading_sorts_up_down_and_back(browser):
    browser.evaluate("table = document.querySelector('table'); 0")
    press = "table.tHead.rows[0].cells[1].querySelector('button').click()"
    written = column(browser, 1)
    low, high, nothing = "msvit scales=1", "msvit scales=1,3", EVIL
    assert written == [low, high, nothing]
    for order, state in (
        ([low, high, nothing], "ascending"),
        ([high, low, nothing], "descending"),  # what has no value stays last
        (written, None),
    ):
        browser.evaluate(press)
        assert column(browser, 1) == order
        sort = "table.tHead.rows[0].cells[1].getAttribute('aria-sort')"
        assert browser.evaluate(sort) == state


def test_a_figure_opens_large_and_its_numbers_can_be_taken(browser):
    browser.evaluate("document.querySelector('.enlarge').click()")
    assert browser.evaluate("large.open && large.querySelector('img').clientWidth > 600")
    browser.evaluate("large.querySelector('button').click()")
    assert browser.evaluate("large.open") is False
    # Files have no clipboard in some browsers: then the text is selected.
    browser.evaluate("document.querySelector('figure .copy').click()")
    taken = "new Promise(done => setTimeout(() => done(document.querySelector('figure .copy')"
    assert browser.evaluate(f"{taken}.textContent), 200))") in ("Copied", "Selected")
    assert browser.complaints == []


def test_pages_are_dark_where_the_reader_is_and_white_on_paper(browser):
    background = "getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="", features=dark)
    assert browser.evaluate(background) == "rgb(21, 23, 27)"
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert browser.evaluate(background) == "rgb(255, 255, 255)"
    shown = "getComputedStyle(document.querySelector('nav')).display"
    assert browser.evaluate(shown) == "none"
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
