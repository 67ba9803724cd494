"""Where things belong: the tables read whole, bad files refused in one line."""

import importlib.metadata

import numpy as np
import pytest

from lab.errors import UserError
from worlds.housekeep.truth import Truth, read_placements, read_twc

PLACES = ("kitchen|top_cabinet", "kitchen|sink", "living_room|sofa_chair")
OBJECTS = ("coffee_pods", "cushion")


def save(path, **parts):
    """Write a file of placements by four people, or with other parts."""
    ranks = np.array(
        [
            [[1, 2, 1, -1], [-1, 0, 0, 0]],  # cabinet: three of four for the pods
            [[1, 2, 0, -3], [-2, -2, 0, 0]],  # sink: two of four are not most
            [[-1, 0, -2, 0], [1, 1, 1, 1]],
        ],
        np.int8,
    )
    kept = {"ranks": ranks, "objects": np.array(OBJECTS), "room_receptacles": np.array(PLACES)}
    np.savez(path, **{k: v for k, v in (kept | parts).items() if v is not None})
    return path


def check(table: Truth):
    """Check what holds of any table."""
    num_objects, num_places = table.belongs.shape
    assert (len(table.objects), len(table.places)) == table.belongs.shape
    assert len(set(table.objects)) == num_objects and len(set(table.places)) == num_places
    assert table.belongs.dtype == bool and table.split.dtype == np.int8
    assert table.split.shape == (num_objects,) == (len(table.category),)
    assert len(table.rooms) == num_places


def test_the_table_of_textworld_commonsense_is_read_whole():
    table = read_twc()
    check(table)
    assert table.belongs.shape == (501, 39) and np.bincount(table.split).tolist() == [251, 125, 125]
    assert set(table.category) == {"object", "food", "clothing", "kitchenware"}
    assert table.belongs.any(1).all() and set(table.rooms) == {""}
    belongs = table.belongs[table.objects.index("milk")]
    assert [table.places[i] for i in np.flatnonzero(belongs)] == ["fridge"]
    assert table.split[table.objects.index("milk")] == 2
    assert read_twc() is table


def test_without_its_package_it_says_what_to_install(monkeypatch):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", fail)
    with pytest.raises(UserError) as caught:
        read_twc.__wrapped__()
    assert str(caught.value) == (
        "textworld-express is not installed: pip install textworld-express==1.1.0"
    )


@pytest.mark.parametrize("content", [None, b"{}"])
def test_another_table_is_refused(tmp_path, monkeypatch, content):
    class Distribution:
        def locate_file(self, file):
            return tmp_path / file.rpartition("/")[2]

    if content:
        (tmp_path / "twc_objects.folds.json").write_bytes(content)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    with pytest.raises(UserError, match="json (cannot be read|is not that of version 1.1.0).*pip"):
        read_twc.__wrapped__()


def test_an_object_belongs_where_most_people_put_it(tmp_path):
    table = read_placements(save(tmp_path / "ranks.npz"))
    check(table)
    assert table.objects == ("coffee pods", "cushion")
    assert table.places == ("kitchen top cabinet", "kitchen sink", "living room sofa chair")
    assert table.rooms == ("kitchen", "kitchen", "living room")
    assert table.belongs.tolist() == [[True, False, False], [False, False, True]]


def test_placements_are_split_by_a_fixed_draw(tmp_path):
    objects = np.array([f"thing_{i}" for i in range(20)])
    ranks = np.ones((3, 20, 10), np.int16)
    path = save(tmp_path / "ranks.npz", objects=objects, ranks=ranks)
    first, again = read_placements(path), read_placements.__wrapped__(path)
    assert np.bincount(first.split).tolist() == [10, 5, 5]
    assert first.split.tolist() == again.split.tolist() != sorted(first.split.tolist())


@pytest.mark.parametrize(
    "parts",
    [
        {"ranks": None},
        {"objects": None},
        {"ranks": np.zeros((3, 2), np.int8)},
        {"ranks": np.zeros((2, 3, 4), np.int8)},
        {"ranks": np.zeros((3, 2, 4))},
        {"ranks": np.zeros((3, 2, 0), np.int8)},
        {"objects": np.array([1, 2])},
        {"objects": np.array(OBJECTS, object)},
        {"objects": np.array(["cushion", "cushion"])},
        {"objects": np.array(["big_cushion", "big cushion"])},
        {"objects": np.array(["cushion", " "])},
        {"objects": np.array(["cushion", "\x1b[31mred"])},
        {"room_receptacles": np.array(["kitchen|_", "kitchen|sink", "bedroom|bed"])},
        {"room_receptacles": np.array(["kitchen", "sink", "sofa"])},
    ],
)
def test_a_file_of_another_layout_is_refused_in_one_line(tmp_path, parts):
    path = save(tmp_path / "bad.npz", **parts)
    with pytest.raises(UserError, match="--placements .*bad.npz is no file") as caught:
        read_placements(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"ranks", b"PK\x03\x04 cut", b"\x93NUMPY\x01"])
def test_what_is_no_npz_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    for bad in (path, tmp_path):
        with pytest.raises(UserError, match="--placements .* is no file of placements") as caught:
            read_placements(bad)
        assert "\n" not in str(caught.value)


def test_whole_numbers_of_any_kind_are_ranks(tmp_path):
    ranks = np.ones((3, 2, 4), np.uint8)
    assert read_placements(save(tmp_path / "ranks.npz", ranks=ranks)).belongs.all()


def test_objects_of_python_are_refused_without_advice_to_load_them(tmp_path):
    path = save(tmp_path / "bad.npz", ranks=np.array([[None]]))
    with pytest.raises(UserError, match="it holds Python objects, which could run code"):
        read_placements(path)


def test_a_single_array_is_no_placements(tmp_path):
    np.save(tmp_path / "ranks.npy", np.zeros((3, 2, 4), np.int8))
    with pytest.raises(UserError, match="is no file of placements"):
        read_placements(tmp_path / "ranks.npy")
