"""The plugins that twistd finds, and the packages that are installed."""

from configparser import ConfigParser
from pathlib import Path

from twisted.application.service import IServiceMaker, ServiceMaker
from twisted.plugin import getPlugins
from twisted.python.usage import Options
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import mufs


class PluginTests(SynchronousTestCase):
    """The subcommands of twistd."""

    def assert_offered(self, command: str, module: str) -> None:
        """twistd has this command once, and it leads to a tap module that imports."""
        (maker,) = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == command]
        assert isinstance(maker, ServiceMaker)
        self.assertEqual(maker.module, module)
        self.assertIsInstance(maker.options(), Options)
        self.assertTrue(callable(maker.makeService))

    def test_server(self) -> None:
        """twistd finds mufs-server, with its options and its service."""
        self.assert_offered("mufs-server", "mufs.server_tap")

    def test_client(self) -> None:
        """twistd finds mufs-client, with its options and its service."""
        self.assert_offered("mufs-client", "mufs.client_tap")


class PackageTests(SynchronousTestCase):
    """The packages that setup.cfg lists, as twisted.plugins cannot be found by searching."""

    def test_all_packages_listed(self) -> None:
        """setup.cfg lists every package below mufs/, and no other one."""
        package = Path(mufs.__file__).parent
        setup = ConfigParser()
        if not setup.read(package.parent / "setup.cfg"):
            raise SkipTest("needs the checkout")
        found = [
            ".".join(init.parent.relative_to(package.parent).parts)
            for init in package.rglob("__init__.py")
        ]
        listed = setup["options"]["packages"].split()
        self.assertEqual(sorted(listed), sorted([*found, "twisted.plugins"]))
