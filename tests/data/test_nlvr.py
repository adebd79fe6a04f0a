"""NLVR's rows and pictures, made ours: three boxes, three pictures."""

import json
import zipfile

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the vision extra is not installed")

from PIL import Image

from dora_jax.data.nlvr import convert, main
from dora_jax.data.sources import read_source
from dora_jax.errors import DoraError


@pytest.fixture
def given(tmp_path):
    """Two statements about a picture whose boxes are of different greys, lines between them."""
    pixels = np.full((100, 400, 3), 128, np.uint8)
    for n, left in enumerate((0, 150, 300)):
        pixels[:, left : left + 100] = 200 + n
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "dev-1-0.png")
    (folder / "7").mkdir()
    Image.fromarray(pixels).save(folder / "7" / "dev-1-2-0.png")
    rows = [
        {"sentence": "One is lighter. ", "label": "true", "image": "dev-1-0.png", "boxes": []},
        {"sentence": "None is.", "label": "false", "identifier": "1-2", "directory": "7"},
    ]
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, folder


def test_boxes_become_pictures_in_their_order(given, tmp_path, capsys):
    rows, folder = given
    main([str(rows), "--images", str(folder), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "rows.jsonl")
    examples, left_out = read_source(tmp_path / "out" / "rows.jsonl")
    assert left_out == {}
    first, second = examples
    assert (
        first.prompt
        == "<image>\n<image>\n<image>\nOne is lighter.\nIs the statement true or false?"
    )
    assert [e.answer for e in examples] == ["true", "false"]
    assert first.options == ("true", "false")
    assert first.task == "nlvr"
    for example in (first, second):
        boxes = [np.asarray(Image.open(image.path)) for image in example.images]
        assert [box.shape for box in boxes] == [(100, 100, 3)] * 3
        assert [set(np.unique(box)) for box in boxes] == [{200}, {201}, {202}]


def test_pictures_may_be_in_a_zip(given, tmp_path):
    rows, folder = given
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as file:
        for path in folder.rglob("*.png"):
            file.write(path, path.relative_to(folder))
    one, two = (
        convert(rows, images, tmp_path / name)
        for name, images in (("a", folder), ("b", tmp_path / "pictures.zip"))
    )
    assert one.read_text() == two.read_text()
    assert len(list((tmp_path / "b" / "images").iterdir())) == 6


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "true", "image": "x.png"}, "line 1: must have a text 'sentence'"),
        ({"sentence": "a", "label": "maybe", "image": "x.png"}, "'label' must be true or false"),
        (
            {"sentence": "a", "label": "true", "image": "x.png"},
            r"the picture x\.png cannot be read",
        ),
        ({"sentence": "a", "label": "true", "image": "narrow.png"}, "is 50 pixels wide, not 400"),
        ({"sentence": "a", "label": "true", "image": "text.png"}, r"text\.png cannot be read"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    Image.new("RGB", (50, 100)).save(tmp_path / "narrow.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DoraError, match=message):
        convert(tmp_path / "rows.jsonl", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "rows.jsonl").exists()
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DoraError, match=r"empty\.jsonl: holds no rows"):
        convert(tmp_path / "empty.jsonl", tmp_path, tmp_path / "out")
    (tmp_path / "bad.zip").write_text("x")
    with pytest.raises(DoraError, match="neither a folder of pictures nor a zip"):
        convert(tmp_path / "rows.jsonl", tmp_path / "bad.zip", tmp_path / "out")
