"""trl-plus env: versions and devices, for a bug report."""

from trl_plus.cli.exits import exit_codes

EPILOG = "Example: trl-plus env"


def env() -> None:
    """Print the versions of Python and of the libraries, and the devices found."""
    import typer

    from trl_plus.ui.environment import devices, versions

    with exit_codes():
        for name, version in {**versions(), **devices()}.items():
            typer.echo(f"{name}: {version or 'not installed'}")
