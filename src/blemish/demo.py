"""`blemish demo`: the main job on real pictures, offline."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from blemish import artifact, report
from blemish.dataset import open_dataset
from blemish.errors import DatasetError
from blemish.scoring import score
from blemish.types import Policy

Say = Callable[[str | Table], None]
RATE = 0.02
"""The promise of the demo; as many good pictures as are held out can keep it."""


def run(out_dir: Path, say: Say) -> None:
    """Learns solar cells, finds the defective ones, and leaves an artifact and a report in `out_dir`.

    Raises:
        DatasetError: the package with the pictures is not installed.
    """
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DatasetError('the demo\'s pictures are not installed: pip install "blemish[demo]"')
    from blemish.detector import create  # brings torch, so only once the pictures are there

    say(
        "Solar cells, photographed by electroluminescence: cracks and dead areas stay dark.\n"
        "2,624 pictures of the ELPV dataset, licence CC BY-NC-SA 4.0 (not for commercial use),\n"
        "see https://github.com/zae-bayern/elpv-dataset. Here: the monocrystalline cells.\n"
    )
    data = open_dataset("elpv", Path(package.origin).parent / "data", category="mono")
    say("1. " + " ".join(data.sentences()))
    detector = create("patchcore").fit(data, Policy(max_false_reject=RATE))
    file = out_dir / "solar.blemish"
    artifact.save(detector, file)
    say(f"2. Learned what good cells look like, and saved it to {file}, the one file to carry to the line.")
    predictor = artifact.load(file)
    found = score(predictor, data)
    say("3. Scored the test pictures, which it has never seen:\n")
    say(report.table(found.results))
    report.write(found, predictor, html_file=out_dir / "report.html")
    say(_explanation(out_dir, report.notes(found)[0]))


def _explanation(out_dir: Path, promise: str) -> str:
    return f"""
How to read it
  image_auroc        the chance that a defective cell scores higher than a good one (1 = always)
  false_reject_rate  share of the good cells that the threshold stops
  miss_rate          share of the defective cells that it lets pass
  {promise}
  It was set on good cells alone, none of them learned from or tested on.
  Cells have no masks in this dataset, so nothing is said of where the defects are.

Open {out_dir / "report.html"} in a browser: scores, curves, the worst mistakes and the best finds.

Now with your own pictures: put good parts into one folder, and type
  blemish fit patchcore FOLDER --out part.blemish
  blemish predict part.blemish NEW_PICTURES --out-dir found
With some defective ones beside them (FOLDER/train/good, FOLDER/test/good, FOLDER/test/scratch):
  blemish score part.blemish FOLDER --html report.html
"""
