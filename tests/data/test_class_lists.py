"""Class lists: names and ids, in the forms that users have."""

import pytest

from videomae_jax.data.class_lists import name_classes, read_class_list
from videomae_jax.errors import UserError

BLOCKS = """item {
  name: "bend/bow (at the waist)"
  id: 1
}
item { name: "climb (e.g., a mountain)" id: 3 }
label {
    name: 'hit'
    label_id: 2
    label_type: PERSON_MOVEMENT
}
"""


@pytest.mark.parametrize(
    "text,expected",
    [
        (BLOCKS, {1: "bend/bow (at the waist)", 3: "climb (e.g., a mountain)", 2: "hit"}),
        ("walk\nrun fast\n\n", {1: "walk", 2: "run fast"}),
        ("1 walk\n2 run fast\n", {1: "walk", 2: "run fast"}),
        ("id,name\n1,walk\n12,run\n", {1: "walk", 12: "run"}),
        ('name,id\r\n"walk, slowly",2\r\nrun,1\r\n', {2: "walk, slowly", 1: "run"}),
        ("1: walk\n3: run\n", {1: "walk", 3: "run"}),
    ],
)
def test_a_list_is_read(tmp_path, text, expected):
    (tmp_path / "list").write_text(text)
    assert read_class_list(tmp_path / "list") == expected


def test_an_id_without_a_name_is_named_by_itself():
    assert name_classes({3: "run", 1: "walk"}) == ("walk", "2", "run")


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "lists no classes"),
        ("walk\nwalk\n", "class 2 'walk': give each id and each name once"),
        ("1,a\n1,b\n", "class 1 'b'"),
        ("0,a\n1,b\n", "class 0 'a': ids are 1 to 65,536"),
        ("1,a\n2000000000,b\n", "class 2000000000 'b': ids are 1 to 65,536"),
    ],
)
def test_a_wrong_list_is_an_error(tmp_path, text, message):
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "list")
    with pytest.raises(UserError, match="cannot read"):
        read_class_list(tmp_path / "other")


def test_lists_of_windows_are_read(tmp_path):
    path = tmp_path / "classes.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes("sit\r\nrun\r\n".encode(encoding))
        assert read_class_list(path) == {1: "sit", 2: "run"}
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="is not a text file in UTF-8"):
        read_class_list(path)
