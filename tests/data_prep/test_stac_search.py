"""What a search of a STAC catalogue finds, counted by hand."""

import json

import pytest

from butterfly_sdm.errors import SourceError
from butterfly_sdm.imagery.options import StacOptions
from data_prep.sources.stac import search_items


def catalogue(folder, boxes, clouds=()):
    clouds = list(clouds) + [0] * (len(boxes) - len(clouds))
    for number, (box, cloud) in enumerate(zip(boxes, clouds, strict=True)):
        item = {
            "type": "Feature",
            "id": f"i{number}",
            "bbox": box,
            "properties": {"datetime": "2023-06-01T00:00:00Z", "eo:cloud_cover": cloud},
        }
        (folder / f"i{number}.json").write_text(json.dumps(item))
    links = [{"rel": "item", "href": f"i{number}.json"} for number in range(len(boxes))]
    path = folder / "catalog.json"
    path.write_text(json.dumps({"type": "Catalog", "links": links}))
    return path


def found(path, box, **more):
    options = StacOptions(
        url=path.as_posix(), start="2023-01-01", end="2023-12-31", bbox=box, **more
    )
    return [item["id"] for item in search_items(options)]


HERE = (-3, 51, -2, 52)


@pytest.mark.parametrize(("items", "most"), [(5, 3), (4, 3), (2, 1)])
def test_more_products_than_most_items_are_an_error(tmp_path, items, most):
    path = catalogue(tmp_path, [HERE] * items)
    with pytest.raises(SourceError, match=f"more than {most} products.*most_items"):
        found(path, HERE, most_items=most)
    assert len(found(path, HERE, most_items=items)) == items


def test_cloudy_products_do_not_count_as_too_many(tmp_path):
    path = catalogue(tmp_path, [HERE] * 4, clouds=[90, 90])
    assert found(path, HERE, most_items=2) == ["i2", "i3"]


@pytest.mark.parametrize(
    ("box", "ids"),
    [
        ((179.6, -17, 179.9, -16), ["i0", "i1"]),  # within the item across 180 degrees
        ((-179.9, -17, -179.6, -16), ["i0", "i2"]),
        ((179.6, -17, -179.6, -16), ["i0", "i1", "i2"]),  # across 180 degrees itself
        ((170, -17, -170, -16), ["i0", "i1", "i2"]),
        ((-10, -17, 10, -16), ["i3"]),
    ],
)
def test_boxes_across_180_degrees_are_met_from_both_sides(tmp_path, box, ids):
    boxes = [(179.5, -17, -179.5, -16), (178, -17, 179.8, -16), (-179.8, -17, -178, -16)]
    path = catalogue(tmp_path, [*boxes, (0, -17, 1, -16)])
    assert found(path, box) == ids
