"""Encrypting without the time that a passphrase's derivation is to take from who guesses it."""

from collections.abc import Mapping, Sequence

from csi_host.process import ProcessResult, Runner

# What is asked for by option, and the least that cryptsetup takes instead; measuring the machine takes seconds as well.
_LEAST = {"--iter-time": ("--pbkdf-force-iterations", "4"), "--pbkdf-memory": ("--pbkdf-memory", "32")}


def fast_luks(run: Runner) -> Runner:
    """Return a runner that has cryptsetup derive keys at once; all else is ``run``'s."""

    def runner(
        argv: Sequence[str],
        *,
        timeout: float,
        ok_codes: Sequence[int] = (0,),
        stdin: str = "",
        secrets: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        secret_file: str | None = None,
    ) -> ProcessResult:
        words = list(argv)
        for option in _LEAST if words[0] == "cryptsetup" else ():
            if option in words:
                at = words.index(option)
                words[at : at + 2] = _LEAST[option]
        return run(
            words,
            timeout=timeout,
            ok_codes=ok_codes,
            stdin=stdin,
            secrets=secrets,
            environment=environment,
            secret_file=secret_file,
        )

    return runner
