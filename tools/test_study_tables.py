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


@pytest.mark.parametrize("records", sorted((ROOT / "docs/results").glob("*/runs.jsonl")))
def test_records_of_a_study_have_a_plan_and_a_summary(records: Path) -> None:
    assert (records.parent / "plan.toml").is_file()
    assert (records.parent / "summary.json").is_file()
