"""Tiny files in the formats that the benchmarks are published in."""

import base64
import json

PIXEL = b"\x89PNG not to be opened"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def vqa_answers(*texts):
    """Ten people's answers: the texts, the last of them as often as it takes."""
    people = [*texts, *texts[-1:] * (10 - len(texts))]
    return [
        {"answer": text, "answer_confidence": "yes", "answer_id": n}
        for n, text in enumerate(people, 1)
    ]


def vqa_questions(*rows, subtype="val2014"):
    questions = [{"image_id": i, "question": q, "question_id": n} for n, i, q in rows]
    return {"info": {}, "data_subtype": subtype, "questions": questions}


def vqa_annotations(rows):
    return {
        "annotations": [
            {
                "question_id": number,
                "image_id": 1,
                "question_type": "what",
                "answer_type": kind,
                "answers": vqa_answers(*texts),
                "multiple_choice_answer": texts[0],
            }
            for number, kind, *texts in rows
        ]
    }


def gqa_question(question, answer, structural="query", **changes):
    types = {"structural": structural, "semantic": "attr", "detailed": "colorQuery"}
    row = {"question": question, "answer": answer, "imageId": "n1", "isBalanced": True}
    return row | {"types": types} | changes


def problem(answer=0, choices=("iron", "wood"), **changes):
    row = {"question": "Which is a metal?", "choices": list(choices), "answer": answer}
    return row | {"hint": "", "image": None, "subject": "natural science"} | changes


def mmbench_table(path, rows, columns=("hint", "answer", "category", "l2-category")):
    """Write a table: (index, question, options, {column: text}) for each row."""
    header = ["index", "question", "A", "B", "C", "D", "image", *columns]
    text = "\t".join(header) + "\n"
    for index, question, options, given in rows:
        cells = {"image": base64.b64encode(PIXEL).decode(), "category": "colour"}
        cells |= {"l2-category": "perception"} | dict(zip("ABCD", options, strict=False)) | given
        text += "\t".join([str(index), question, *(cells.get(c, "") for c in header[2:])]) + "\n"
    return write(path, text)
