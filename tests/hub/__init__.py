"""A Hugging Face Hub on loopback: real clients push to it and load from it through ``HF_ENDPOINT``.

    with LoopbackHub(folder) as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path / "home")})
        assert "README.md" in hub.files("tester/model")

Its state is the folder: a hub that is started there again goes on with the same repos, tokens and objects.
"""

from tests.hub.client import Client, ClientError
from tests.hub.faults import Fault
from tests.hub.hub import LoopbackHub

__all__ = ["Client", "ClientError", "Fault", "LoopbackHub"]
