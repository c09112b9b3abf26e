import pytest

from data.arguments import UserError
from data.files import atomic_writer, read_json, write_json


def test_a_json_object_comes_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"label": "喜悦", "f1": [0.5, None]})
    assert read_json(path) == {"label": "喜悦", "f1": [0.5, None]}
    assert "喜悦" in path.read_text(encoding="utf-8")
    assert read_json(tmp_path / "nowhere.json", missing_ok=True) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a.json: cannot be read \(No such file or directory\)$"),
        (b"{", r"a.json: not a JSON object \(Expecting property name"),
        (b"[]", r"a.json: not a JSON object \(but a list\)$"),
        (b'{"a": "\xff"}', r"a.json: not a JSON object \('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_json(path, missing_ok=True)  # only a missing file may be missing
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def write_half():
        with atomic_writer(path) as file:
            file.write("after")
            raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
