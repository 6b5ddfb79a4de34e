"""The table of doubts counts what it says."""

import torch
from image_doubt import table


def test_images_stand_in_the_row_of_their_doubt() -> None:
    doubt = torch.tensor([0.01, 0.15, 0.3, 0.6, 0.7, 5.0])
    decibels = torch.tensor([40.0, 30.0, 25.0, 22.0, 18.0, 12.0])
    lines = table(doubt, decibels, title="two attacks", threshold_db=20.0).splitlines()
    assert "two attacks, 6 images" in lines[0]
    assert "-1.00" in lines[0]
    assert lines[4:] == [
        "| 0 to 0.1 | 1 | 40.0 | 40.0 | 100% | 0 |",
        "| 0.1 to 0.2 | 1 | 30.0 | 30.0 | 100% | 0 |",
        "| 0.2 to 0.5 | 1 | 25.0 | 25.0 | 100% | 0 |",
        "| 0.5 to 0.8 | 2 | 20.0 | 18.0 | 50% | 1 |",
        "| 0.8 and more | 1 | 12.0 | 12.0 | 0% | 1 |",
    ]
