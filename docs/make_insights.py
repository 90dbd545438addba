"""Make docs/insights.md of benchmarks/results/insights.json: run after `whet reproduce all`.

With a folder of artefacts as its argument, first renews their numbers in the results file.
"""

import json
import sys
from pathlib import Path

from whet.evaluate.reproduce.insights import collect, page

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "insights.md", HERE.parent / "benchmarks" / "results" / "insights.json"


def main() -> None:
    if sys.argv[1:]:
        before = json.loads(RESULTS.read_text("utf-8"))
        results = collect(Path(sys.argv[1]), before)
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    main()
