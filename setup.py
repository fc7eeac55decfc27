"""What pyproject.toml cannot say: `configs/` stands at the top of a checkout and inside a wheel."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """An editable install finds `configs/` in the checkout; a built one has it as `jaxbp/configs`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "jaxbp" / "configs"
        self.mkpath(str(target))
        for path in sorted(Path("configs").glob("*.toml")):
            self.copy_file(str(path), str(target / path.name))


setup(cmdclass={"build_py": BuildWithConfigs})
