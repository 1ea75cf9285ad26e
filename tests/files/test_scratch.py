from __future__ import annotations

import pytest

from linmu.errors import InputError
from linmu.files.scratch import scratch_folder
from linmu.processing.encode import model_processor
from tests.folders import teacher_folder


def test_errors_name_the_folder_that_the_user_gave(tmp_path):
    with pytest.raises(InputError) as caught, scratch_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("x")
        raise InputError(f"cannot read {folder}/a", got=folder, expected="more", fix=f"look into {folder}")
    shown = tmp_path / "model"
    assert str(caught.value) == f"cannot read {shown}/a; got {shown}; expected more; fix: look into {shown}"
    assert not folder.exists()


def test_a_processor_that_cannot_be_used_is_named_by_its_model(tmp_path):
    folder = teacher_folder("llava", tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace('"resample": 3', '"resample": 77'))
    with pytest.raises(InputError, match="image.resample") as caught:
        model_processor(folder)
    assert "/tmp/tmp" not in str(caught.value)
