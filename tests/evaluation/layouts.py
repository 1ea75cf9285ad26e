"""Small hand-made copies of published data sets, in their layouts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from linmu.formats.data_folder import write_video
from tests.tiny import tiny_image, tiny_video


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def png(seed: int) -> dict[str, Any]:
    """An image as the hub's Parquet files hold it."""
    buffer = io.BytesIO()
    tiny_image(seed).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def mmmu_row(name: str, question: str, options: str, answer: str, kind: str, images: int) -> dict[str, Any]:
    texts = {
        "id": name,
        "question": question,
        "options": options,
        "explanation": "",
        "img_type": "['Plots']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": kind,
        "subfield": "some",
    }
    return texts | {f"image_{i}": png(i) if i <= images else None for i in range(1, 8)}


def mmmu_copy(folder: Path) -> Path:
    """Two subjects; a question with an image among its options, an open one with two accepted answers."""
    art = [
        mmmu_row(
            "validation_Art_Theory_1", "Who painted <image 1>?", "['Klee', 'Miró', 'Marc']", "B", "multiple-choice", 1
        ),
        mmmu_row(
            "validation_Art_Theory_2", "Like <image 2>?", "['<image 3>', \"it's <image 1>\"]", "A", "multiple-choice", 3
        ),
    ]
    maths = [mmmu_row("validation_Math_7", "How long is x in <image 1>?", "[]", "['12', 'twelve']", "open", 1)]
    for subject, rows in (("Art_Theory", art), ("Math", maths)):
        write_rows(folder / subject / "validation-00000-of-00001.parquet", rows)
    test = [mmmu_row("test_Math_1", "What is <image 1>?", "['1', '2']", "?", "multiple-choice", 1)]
    write_rows(folder / "Math" / "test-00000-of-00001.parquet", test)
    return folder


def videomme_row(name: str, video: str, duration: str, answer: str) -> dict[str, Any]:
    return {
        "video_id": name.split("-")[0],
        "duration": duration,
        "domain": "Sports Competition",
        "sub_category": "Football",
        "url": "https://example.org",
        "videoID": video,
        "question_id": name,
        "task_type": "Counting Problem",
        "question": f"How many {{goals}} in {name}?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": answer,
    }


SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<font color="white" size=".72c">Hi guys,</font>

2
00:00:02,500 --> 00:00:04,000
42
goals today

"""


def videomme_copy(folder: Path) -> Path:
    """Two videos, one of them without speech."""
    rows = [
        videomme_row("001-1", "fFjv93ACGo8", "short", "C"),
        videomme_row("001-2", "fFjv93ACGo8", "short", "A"),
        videomme_row("601-1", "-Tr_x", "long", "D"),
    ]
    write_rows(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    (folder / "data").mkdir()
    (folder / "subtitle").mkdir()
    write_video(folder / "data" / "fFjv93ACGo8.mp4", tiny_video(1, 4, (66, 50)))
    write_video(folder / "data" / "-Tr_x.mkv", tiny_video(2, 5, (66, 50)))
    (folder / "subtitle" / "fFjv93ACGo8.srt").write_text(SRT, "utf-8")
    return folder


def textvqa_copy(folder: Path) -> Path:
    """Two questions about one picture; beside them the OCR file that the data set comes with."""
    images = folder / "train_images"
    images.mkdir(parents=True)
    tiny_image(3).save(images / "003a8ae2ef43b901.jpg")
    row = {
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Bottle"],
        "flickr_original_url": "https://example.org",
        "image_width": 140,
        "image_height": 100,
        "set_name": "val",
        "question_tokens": ["what"],
    }
    rows = [
        row
        | {"question": "what brand is it?", "question_id": 34602, "answers": ["nokia"] * 6 + ["toshiba"] * 3 + ["?"]},
        row | {"question": "what TIME is it?", "question_id": 34603, "answers": ["10:10"] * 10},
    ]
    document = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps(document))
    (folder / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps({"data": [{"ocr_tokens": []}]}))
    test = [{key: value for key, value in rows[0].items() if key != "answers"}]
    (folder / "TextVQA_0.5.1_test.json").write_text(json.dumps({"data": test}))
    return folder


def longvideobench_row(name: str, group: int, right: int | None, candidates: list[str]) -> dict[str, Any]:
    video = name.rsplit("_", 1)[0]
    row = {
        "video_id": video,
        "question": f"What happens in {name}?",
        "question_wo_referring_query": "What happens?",
        "candidates": candidates,
        "position": [9, 40],
        "topic_category": "NP-News-Programs",
        "question_category": "TOS",
        "level": "L2-Relation",
        "id": name,
        "video_path": f"{video}.mp4",
        "subtitle_path": f"{video}_en.json",
        "duration_group": group,
        "starting_timestamp_for_subtitles": 0,
        "duration": 4.0,
        "view_count": 1,
    }
    return row if right is None else row | {"correct_choice": right}


def longvideobench_copy(folder: Path) -> Path:
    """Two groups of duration, both forms of subtitle files, and the test file without answers."""
    (folder / "subtitles").mkdir(parents=True)
    (folder / "videos").mkdir()
    rows = [
        longvideobench_row("a_b_0", 600, 1, ["He sits", "He stands"]),
        longvideobench_row("a_b_1", 600, 0, ["One", "Two", "Three"]),
        longvideobench_row("cd_0", 15, 4, ["v", "w", "x", "y", "z"]),
    ]
    (folder / "lvb_val.json").write_text(json.dumps(rows))
    (folder / "lvb_test_wo_gt.json").write_text(json.dumps([longvideobench_row("e_0", 15, None, ["v", "w"])]))
    spoken = [{"start": "00:00:01.000", "end": "00:00:02.000", "line": "First words"}, {"line": ""}, {"line": "more"}]
    (folder / "subtitles" / "a_b_en.json").write_text(json.dumps(spoken))
    (folder / "subtitles" / "cd_en.json").write_text(json.dumps([{"timestamp": [0.0, 1.5], "text": "Spoken"}]))
    for seed, name in enumerate(("a_b", "cd")):
        write_video(folder / "videos" / f"{name}.mp4", tiny_video(seed, 4, (66, 50)))
    return folder
