"""One HTML file that shows studies and searches: no network, nothing beside it, printable.

:mod:`.study` and :mod:`.search` say what there is to show, as :class:`.content.Part`;
:mod:`.render` makes the file of it. What is shown was computed elsewhere: a page adds no number.
"""

PAGE = "report.html"
"""The file's name."""
