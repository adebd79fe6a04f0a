"""NLVR's four files in the size of a toy, whose splits share one statement and one picture."""

import json
import zipfile
from pathlib import Path

from PIL import Image


def nlvr_folder(folder: Path) -> Path:
    """Write five rows of each split; return the folder.

    Of `dev`, row 1 has a statement of training, and row 2 a picture of it with its boxes exchanged.
    """
    folder.mkdir()
    for split, shade in (("train", 0), ("dev", 100)):
        with zipfile.ZipFile(folder / f"{split}_images.zip", "w") as file:
            for n in range(5):
                picture = Image.new("RGB", (400, 100), (shade + n, 0, 0))
                if n == 2:
                    left = 0 if split == "train" else 300
                    picture = Image.new("RGB", (400, 100), (2, 0, 0))
                    picture.paste((0, 9, 0), (left, 0, left + 100, 100))
                picture.save(folder / "one.png")
                file.write(folder / "one.png", f"{n}.png")
        said = [f"It was {n}." if split == "train" else f"It is {n}." for n in range(5)]
        said[1] = "It is both."
        rows = [
            {"sentence": text, "label": "true", "image": f"{n}.png"} for n, text in enumerate(said)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
