import re
from pathlib import Path

import pytest
from study_tables import study_tables

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_results_page_are_those_of_the_records() -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    found = re.findall(
        r"<!-- tables: python tools/study_tables.py (\S+) -->\n(.*?)\n<!-- end of tables -->",
        page,
        flags=re.DOTALL,
    )
    assert found
    for folder, tables in found:
        assert tables == study_tables(ROOT / folder)


@pytest.mark.parametrize("folder", sorted((ROOT / "docs/results").glob("*/summary.json")))
def test_the_summary_belongs_to_the_records(folder: Path) -> None:
    assert (folder.parent / "plan.toml").is_file()
    assert (folder.parent / "runs.jsonl").is_file()
