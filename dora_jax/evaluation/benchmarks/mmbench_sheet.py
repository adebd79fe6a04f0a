"""What MMBench's server takes: a sheet of its questions with the model's answers."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from dora_jax.analysis.atomic import write_bytes
from dora_jax.errors import DoraError
from dora_jax.evaluation.benchmarks.answers import Unmatched, unmatched
from dora_jax.evaluation.benchmarks.mmbench import table_rows

_ASKED = ("index", "question", "A", "B", "C", "D")
_GROUPS = ("category", "l2-category")


def write_submission(table: Path, answers: Mapping[str, str], path: Path) -> Unmatched:
    """Write an Excel sheet: the table's questions and options, and the model's text as it is.

    A question without an answer gets an empty one.

    Args:
        table: the split's file.
        answers: the model's, by index.
        path: the `.xlsx` file to write.

    Returns:
        Which questions and answers do not go together.

    Raises:
        DoraError: for a table that cannot be read, without openpyxl, or when the file cannot be
            written.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise DoraError(f"{path}: needs openpyxl: pip install 'dora-jax[benchmarks]'") from error
    book = Workbook()
    sheet = book.active
    sheet.append([*_ASKED, "prediction", "category", "l2_category"])
    asked = []
    for _, row in table_rows(table):
        asked.append(row["index"])
        texts = [row.get(name, "") for name in _ASKED]
        texts += [answers.get(row["index"], ""), *(row.get(name, "") for name in _GROUPS)]
        sheet.append([ILLEGAL_CHARACTERS_RE.sub("", text) or None for text in texts])
        for cell in sheet[sheet.max_row]:
            if cell.value is not None:
                cell.data_type = "s"  # a text that begins with "=" is no formula
        sheet.cell(sheet.max_row, 1).value = int(row["index"])
    content = BytesIO()
    book.save(content)
    write_bytes(path, content.getvalue())
    return unmatched(asked, answers)
