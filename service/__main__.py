"""`python -m service`: serve the API; its settings come from `HEADROOM_*` variables."""

import argparse
import socket
import sys

import uvicorn

from service.app import create_app
from service.auth import ExposureError, KeysRefused, check_exposure, check_keys
from service.contract.connection import AccessRefused, check_access
from service.contract.settings import SettingsRefused, from_environment
from service.settings import ServiceSettings

# Open requests get this long after SIGTERM: none of them is long, but a download may be under way.
_GRACE_S = 5


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int, help="a listening socket, instead of host and port")
    chosen = parser.parse_args(arguments)
    sockets = None if chosen.fd is None else [socket.socket(fileno=chosen.fd)]
    host = chosen.host if sockets is None else sockets[0].getsockname()[0]
    try:
        settings = from_environment(ServiceSettings)
        check_exposure(host, settings.api_keys_file)
        check_keys(settings.api_keys_file)
        check_access(settings)
    except (SettingsRefused, ExposureError, KeysRefused, AccessRefused) as error:
        parser.exit(1, f"{error}\n")
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=chosen.port,
        http="h11",  # it bounds the head of a request; httptools, where it is installed, does not
        access_log=False,  # status polling would fill it
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets)


if __name__ == "__main__":
    main(sys.argv[1:])
