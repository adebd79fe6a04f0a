"""Write `beams.json`: beam searches of tiny models, by `transformers`.

Run in the parity environment: python -m tests.golden.make_beams_golden
"""

import warnings
from pathlib import Path
from typing import Any

from tests.generation.beam_cases import CASES, FAMILIES, SETTINGS, peer_search
from tests.golden.make_families_golden import peer
from tests.golden.writing import write_by_name

TARGET = Path(__file__).with_name("beams.json")


def main() -> None:
    """Run the reference searches and write the file."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for family in FAMILIES:
        model = peer(family)
        found[family] = {}
        for name in (name for case, name in CASES if case == family):
            texts, scores = peer_search(model, SETTINGS[name])
            print(family, name, [[len(text) for text in row] for row in texts])
            rounded = [[round(float(score), 5) for score in row] for row in scores]
            found[family][name] = {"texts": texts, "scores": rounded}
    write_by_name(TARGET, found)


if __name__ == "__main__":
    main()
