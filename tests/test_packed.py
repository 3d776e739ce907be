import os
from pathlib import Path

from blemish.packed import PAGE, Packed, packed_samples
from blemish.types import Sample


def samples(count: int) -> list[Sample]:
    return [
        Sample(
            path=Path(f"/data/line 3/{number:06}.png"),
            category="nut",
            split="test",
            is_anomalous=None if number % 3 == 2 else bool(number % 3),
            defect="scratch" if number % 3 == 1 else "",
            masks=tuple(Path(f"/data/masks/{number:06}-{mask}.png") for mask in range(number % 3)),
            part=f"part {number // 2}",
            view=f"C{number % 2}",
        )
        for number in range(count)
    ]


def test_what_is_packed_comes_out_as_it_was():
    for count in (0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE):
        there = samples(count)
        packed = packed_samples(iter(there))
        assert (len(packed), list(packed)) == (count, there)
        assert [packed[place] for place in range(count)] == there
        assert packed[1:3] == there[1:3]
    assert packed[-1] == there[-1]
    assert 0 < packed.size < 40 * len(packed)


def test_names_that_are_no_text_and_lines_in_names_are_kept():
    odd = [Path(os.fsdecode(b"/x/\xfe.png")), Path("/x/a\nb.png"), Path("/x/\N{SNOWMAN}.png")]
    there = [Sample(path=path, category="", split="train", is_anomalous=False) for path in odd]
    assert list(packed_samples(there)) == there
    assert list(Packed(["\udcfe"], str, str)) == ["\udcfe"]
