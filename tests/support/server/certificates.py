"""Certificates for tests, made by the program openssl: an authority and what it signed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Signed:
    cert: Path
    key: Path


class Authority:
    """Its own certificate is `cert`; all files are in `folder`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, name
        folder.mkdir(parents=True, exist_ok=True)
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-days", "2")
        _openssl("req", "-x509", "-newkey", "ec", *_CURVE, "-nodes", *subject, "-keyout", self._key, "-out", self.cert)

    def sign(self, name: str, *names: str, has_expired: bool = False) -> Signed:
        """A certificate of `name` for the addresses or hosts `names`."""
        made = Signed(self._folder / f"{self._name}-{name}.pem", self._folder / f"{self._name}-{name}.key")
        request, extensions = made.cert.with_suffix(".csr"), made.cert.with_suffix(".ext")
        alternatives = ",".join(f"IP:{n}" if n.replace(".", "").isdigit() else f"DNS:{n}" for n in names)
        extensions.write_text(f"subjectAltName={alternatives}\n" if names else "basicConstraints=CA:FALSE\n")
        _openssl(
            "req", "-newkey", "ec", *_CURVE, "-nodes", "-subj", f"/CN={name}", "-keyout", made.key, "-out", request
        )
        signer = ("-CA", self.cert, "-CAkey", self._key, "-CAcreateserial")
        days = "-1" if has_expired else "2"
        _openssl("x509", "-req", "-in", request, *signer, "-days", days, "-extfile", extensions, "-out", made.cert)
        return made


_CURVE = ("-pkeyopt", "ec_paramgen_curve:prime256v1")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
