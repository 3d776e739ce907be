"""demo: the main job on small real data, offline."""

from dataclasses import dataclass
from pathlib import Path

from blemish.command import say


@dataclass(frozen=True)
class Demo:
    """Do the main job on real pictures of solar cells, offline; needs blemish[demo]."""

    out_dir: Path = Path("demo")
    """Folder for the artifact and the report."""

    def __call__(self) -> int:
        """Runs the demo."""
        from blemish import demo
        from blemish.files import check_writable

        check_writable(self.out_dir / "report.html")
        demo.run(self.out_dir, say)
        return 0


COMMAND = Demo
